"""Caches of diffusers decide on the host which blocks run; blocks compiled apart merge the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
    hooks,
)
from torch import Tensor, nn

import toma_fx
from tests.diffusers.door import fresh, no_recompile
from tests.eager_refresh import HandRefresh, remembered_by_hand
from tests.models import flux_inputs
from tests.remembering import small_flux
from toma_fx import PlainModelWarning, TomaConfig, reuse_stats
from toma_fx.diffusers import apply, remove, status
from toma_fx.share import Share

SeaCacheConfig: Any = getattr(hooks, "SeaCacheConfig", None)  # of diffusers 0.42 and newer

__all__ = ["fresh"]  # the fixture of these tests

STEPS, SIDE = 6, 8
METHODS = ("toma", "tomesd", "tofu", "todo", "refresh")


class Clock:
    """What caches ask for the timestep; it falls from 1000."""

    now = 0


def latents_of(_: nn.Module, __: Any, call: dict[str, Any]) -> list[Tensor]:
    """`(C, T, H, W)` of each item, as SeaCache compares them."""
    return [one.T.reshape(-1, 1, SIDE, SIDE) for one in call["hidden_states"]]


def attention(**more: Any) -> dict[str, Any]:
    """Steps 2 and on may leave attention out, every other one."""
    return {
        "spatial_attention_block_skip_range": 2,
        "spatial_attention_timestep_skip_range": (-1, 800),
        "current_timestep_callback": lambda: Clock.now,
        **more,
    }


CACHES: dict[str, Callable[[], Any]] = {
    "first block": lambda: FirstBlockCacheConfig(threshold=0.5),
    "mag": lambda: MagCacheConfig(
        **{"num_inference_steps": STEPS, "mag_ratios": [1.0] * STEPS, "max_skip_steps": 1}
    ),
    "sea": lambda: SeaCacheConfig(
        threshold=9.0, residual_order=0, max_consecutive_cached=1, raw_vision_callback=latents_of
    ),
    "taylor": lambda: TaylorSeerCacheConfig(
        cache_interval=2, disable_cache_before_step=2, max_order=1
    ),
    "pyramid": lambda: PyramidAttentionBroadcastConfig(**attention()),
    "faster": lambda: FasterCacheConfig(
        **attention(
            is_guidance_distilled=True,
            attention_weight_callback=lambda _: 0.3,
            tensor_format="BCHW",
        )
    ),
}
OF_BLOCKS = ("first block", "mag", "sea")
"""Those that leave whole blocks out; the others are inside of blocks, around attention."""


def cache(name: str) -> Any:
    if name == "sea" and SeaCacheConfig is None:
        pytest.skip("this diffusers has no SeaCache")
    return CACHES[name]()


def blocks_for(name: str) -> Any:
    """Blocks of one class: merging one whose attention is left out needs an MLP behind it."""
    if name in OF_BLOCKS:
        return small_flux(num_layers=0, num_single_layers=3)
    return small_flux(num_layers=1, num_single_layers=0)


def merged(model: Any, method: str, **changes: Any) -> Any:
    options: dict[str, Any] = {"regions": "all", "min_tokens": 1, "scope": "region"}
    how = TomaConfig(
        method=method, **options | changes, **{"window": 4} if method == "toma" else {}
    )
    return apply(model, how, regional=True, options={"inner_backend": "eager"})


def generation(model: Any, call: Any = None) -> Tensor:
    torch.manual_seed(0)
    inputs = flux_inputs(model, SIDE, SIDE, text=5)
    latents = inputs.pop("hidden_states")
    for step in range(STEPS):
        noise = 0.98 - step * 0.9 / STEPS
        Clock.now = 1000 - 150 * step
        where = {"step_index": step, "sigma": noise, "num_inference_steps": STEPS}
        with model.cache_context("cond", **where if SeaCacheConfig else {}):
            given = {"hidden_states": latents, "timestep": torch.full((1,), noise)}
            change = (call or model)(**inputs | given)[0]
        latents = latents - 0.9 / STEPS * change
    model._reset_stateful_cache()
    return latents


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CACHES)
def test_each_cache_works_with_each_method(name: str, method: str) -> None:
    model = blocks_for(name)
    model.enable_cache(cache(name))
    plain = generation(model)
    found = generation(merged(model, method))
    assert 1e-5 < distance(found, plain) < 0.1
    with no_recompile():
        assert torch.equal(generation(model), found)
    assert [graph.state for graph in status(model).graphs] == ["merged"]
    stats = reuse_stats(model)
    if method in ("toma", "refresh"):
        assert (stats.steps, stats.selections) == (2 * STEPS, 4)
    remove(model)
    assert torch.equal(generation(model), plain)


@pytest.mark.parametrize(
    ("name", "method"), [("first block", "toma"), ("mag", "todo"), ("faster", "tomesd")]
)
def test_what_merges_nothing_is_the_cache_alone(name: str, method: str) -> None:
    model = blocks_for(name)
    model.enable_cache(cache(name))
    plain = generation(model)
    assert distance(generation(merged(model, method, ratio=0.0)), plain) < 1e-6


@contextmanager
def by_hand(model: Any, ran: Counter[str]) -> Iterator[Callable[..., Any]]:
    """A call of a model that remembers by hand, where each block has turns of its own."""
    cells = tuple((y, x) for y in range(SIDE) for x in range(SIDE))
    how = HandRefresh(Share(1, 2), lambda _: cells)
    with remembered_by_hand(model, how) as run:
        for path, block in model.named_modules():
            if "forward" in vars(block):
                block.forward = turning(how, path, ran, block.forward)
        yield run


def turning(
    how: HandRefresh, path: str, ran: Counter[str], forward: Callable[..., Any]
) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        how.turn = ran[path]
        ran[path] += 1
        return forward(*args, **kwargs)

    return run


@pytest.mark.parametrize("name", OF_BLOCKS)
def test_a_block_that_is_left_out_remembers_what_it_did(name: str) -> None:
    """Its memory is that of the steps in which it ran, and as old as it is."""
    model, ran = small_flux(), Counter[str]()
    with by_hand(model, ran) as run:
        model.enable_cache(cache(name))
        wanted = generation(model, run)
        model.disable_cache()
    assert 1 < ran["single_transformer_blocks.1"] < STEPS
    model.enable_cache(cache(name))
    assert distance(generation(merged(model, "refresh", keys="computed")), wanted) < 1e-5
    assert reuse_stats(model).steps == STEPS


def test_compiled_code_that_is_switched_off_is_said() -> None:
    model = merged(blocks_for("mag"), "toma")
    with (
        torch.compiler.set_stance("force_eager"),
        pytest.warns(PlainModelWarning, match="the plain model runs"),
    ):
        generation(model)
    assert [graph.state for graph in status(model).graphs] == ["plain"]


def test_hooks_may_come_and_go() -> None:
    """A cache that is enabled behind `apply`, and one that is disabled before `remove`."""
    model = blocks_for("mag")
    plain = generation(model)
    alone = generation(merged(model, "toma"))
    model.enable_cache(cache("mag"))
    both = generation(model)
    assert not torch.allclose(both, alone)
    model.disable_cache()
    toma_fx.reset(model)
    assert torch.equal(generation(model), alone)
    remove(model)
    assert torch.equal(generation(model), plain)
    assert all("forward" not in vars(b) or b.forward.__self__ is b for b in model.modules())
