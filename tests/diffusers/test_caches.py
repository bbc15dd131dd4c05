"""Caches of diffusers decide on the host which blocks run; blocks compiled apart merge the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from torch import Tensor

from tests.diffusers.door import fresh
from tests.models import flux_inputs
from tests.remembering import small_flux
from toma_fx import PlainModelWarning, TomaConfig, reuse_stats
from toma_fx.diffusers import apply, status

__all__ = ["fresh"]  # the fixture of these tests

STEPS = 6
CACHES: dict[str, Callable[[], Any]] = {
    "first block": lambda: FirstBlockCacheConfig(threshold=0.2),
    "taylor": lambda: TaylorSeerCacheConfig(
        cache_interval=2, disable_cache_before_step=2, max_order=1
    ),
    "pyramid": lambda: PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(0, 1000),
        current_timestep_callback=lambda: 500,
    ),
}


def cached(cache: Any) -> Any:
    model: Any = small_flux(num_single_layers=3)
    model.enable_cache(cache)
    return model


def merged(model: Any, method: str) -> Any:
    options: dict[str, Any] = {"regions": "all", "min_tokens": 1, "scope": "region"}
    if method == "toma":
        options["window"] = 4
    how = TomaConfig(method=method, **options)
    return apply(model, how, regional=True, options={"inner_backend": "eager"})


def generation(model: Any) -> Tensor:
    torch.manual_seed(0)
    inputs = flux_inputs(model, 8, 8, text=5)
    latents = inputs.pop("hidden_states")
    with model.cache_context("cond"):
        for step in range(STEPS):
            time = torch.full((1,), 0.98 - step * 0.9 / STEPS)
            change = model(**inputs | {"hidden_states": latents, "timestep": time})[0]
            latents = latents - 0.9 / STEPS * change
    return latents


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("first block", "toma"),
        ("first block", "refresh"),
        ("taylor", "toma"),
        ("pyramid", "refresh"),
    ],
)
def test_caches_and_merging_work_together(name: str, method: str) -> None:
    plain = generation(cached(CACHES[name]()))
    model = merged(cached(CACHES[name]()), method)
    found = generation(model)
    difference = float((found - plain).norm() / plain.norm())
    assert 1e-5 < difference < 0.05
    assert [graph.state for graph in status(model).graphs] == ["merged"]
    stats = reuse_stats(model)
    assert (stats.steps, stats.selections) == (STEPS, 2)


def test_a_cache_that_switches_compiled_code_off_is_said() -> None:
    """MagCache keeps Dynamo out of its blocks."""
    cache = MagCacheConfig(num_inference_steps=STEPS, mag_ratios=[1.0] * STEPS)
    model = merged(cached(cache), "toma")
    with pytest.warns(PlainModelWarning, match="the plain model runs"):
        generation(model)
    assert [graph.state for graph in status(model).graphs] == ["plain"]
