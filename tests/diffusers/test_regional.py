"""`apply(regional=True)`: blocks compiled apart, behind the same door."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

import toma_fx
from tests.apart import Denoiser
from tests.diffusers.door import (
    EAGER,
    compiles,
    config,
    fresh,
    no_recompile,
    picture,
    ran,
)
from tests.models import flux, flux_inputs, sd3, sdxl
from tests.pipelines import Pipe, flux_pipe, sd3_pipe, sdxl_pipe
from toma_fx import ConfigError, LimitWarning, PipelineError, last_report, reuse_stats
from toma_fx.diffusers import apply, enable, is_applied, remove, status
from toma_fx.diffusers.regional import blocks_of
from toma_fx.following import is_followed

__all__ = ["fresh"]  # the fixture of these tests

SIZE = {"side": (128, 128)}


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (sdxl, {"BasicTransformerBlock": 4}),
        (flux, {"FluxTransformerBlock": 2, "FluxSingleTransformerBlock": 2}),
        (sd3, {"JointTransformerBlock": 3}),  # names no classes
    ],
)
def test_blocks_are_found(build: Callable[[], nn.Module], names: dict[str, int]) -> None:
    found = [type(block).__name__ for block in blocks_of(build())]
    assert {name: found.count(name) for name in found} == names


@pytest.mark.parametrize("pipe", [sdxl_pipe, flux_pipe, sd3_pipe])
def test_a_picture_is_that_of_the_whole_denoiser(pipe: Callable[[], Pipe]) -> None:
    """And so are the counts of its plans; other prompts, seeds and numbers of steps recompile
    nothing."""
    one, how = pipe(), config(scope="region")
    wanted, counted = [], []
    for regional in (False, True):
        enable(one.pipeline, how, regional=regional, **EAGER)
        pictures = [one.run(0, 0, **SIZE)]
        with no_recompile():
            pictures += [one.run(1, 1, steps=4, **SIZE)]
        wanted.append(pictures)
        counted.append(reuse_stats(one.denoiser))
        assert ran(one.pipeline) == {row.graph: 4 for row in status(one.pipeline).graphs}
    for whole, apart in zip(*wanted, strict=True):
        assert torch.allclose(apart, whole, atol=1e-4)
    assert counted[0].selections == counted[1].selections == 3
    assert counted[0].steps == counted[1].steps == 7
    assert counted[0].groups == counted[1].groups
    remove(one.pipeline)
    assert not is_followed(one.denoiser)
    assert not is_applied(one.pipeline)
    assert all("_compiled_call_impl" not in vars(block) for block in blocks_of(one.denoiser))


@pytest.mark.parametrize("pipe", [sdxl_pipe, flux_pipe])
def test_upright_and_lying_pictures_have_windows_of_their_own(pipe: Callable[[], Pipe]) -> None:
    """They have as many tokens, so that a block cannot tell them apart."""
    sizes = [(64, 128), (128, 64)]
    pictures = []
    for regional in (False, True):
        one = pipe()
        apply(one.pipeline, config(scope="region"), regional=regional, **EAGER)
        pictures.append([one.run(steps=2, side=side) for side in (*sizes, *sizes)])
        with no_recompile():
            one.run(steps=1, side=sizes[1])
    for whole, apart in zip(*pictures, strict=True):
        assert torch.allclose(apart, whole, atol=1e-4)


class Folds(Denoiser):
    """Small blocks on a folded picture."""

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        hidden = sample.flatten(2).transpose(1, 2)
        hidden = super().forward(hidden, timestep, torch.zeros(1, 6))
        return hidden.transpose(1, 2).reshape(sample.shape)


@pytest.mark.parametrize("batch", [1, 2])
def test_static_sizes_by_hand(batch: int) -> None:
    """The first single block of Flux sees a tensor of its own, the others a part of a longer one.

    Of one item both have the same strides, and a class of blocks one graph a size; of two the
    strides differ. The view that the first joint block sees is no guard.
    """
    model, widths = flux(), (8, 10, 12)
    toma_fx.follow(model)
    options = {"inner_backend": "eager", "min_tokens": 16, "regions": "all"}
    model.compile_repeated_blocks(backend="toma", options=options, dynamic=False)
    before = compiles()
    limit = torch._dynamo.config.patch(recompile_limit=2 * len(widths))
    with warnings.catch_warnings(), torch.no_grad(), limit:
        warnings.simplefilter("error", LimitWarning)
        for width in (*widths, *widths):
            model(**flux_inputs(model, 8, width, text=16, batch=batch))
    assert compiles() - before == (1 + batch) * len(widths)


@pytest.mark.parametrize("regional", [False, True])
def test_twenty_sizes_take_turns(regional: bool) -> None:
    """Each is merged and compiled once, and meets no limit of Dynamo's."""
    sizes = [picture(width) for width in range(8, 48, 2)]
    model = Folds(lists=(2, 0))
    plain = [model(size, torch.tensor([9.0])) for size in sizes]
    apply(model, config(scope="region"), regional=regional, **EAGER)
    found, before = [], compiles()
    with warnings.catch_warnings():
        warnings.simplefilter("error", LimitWarning)
        for step in range(2):
            with no_recompile() if step else nullcontext():
                found.append([model(size, torch.tensor([9.0 - step])) for size in sizes])
    assert compiles() - before == len(sizes)
    for one, without in zip(found[0], plain, strict=True):
        assert not torch.allclose(one, without, atol=1e-3)
    stats = reuse_stats(model)
    assert (stats.steps, stats.selections) == (2 * len(sizes), len(sizes))


def test_steps_outside_of_merge_steps_run_plain_blocks() -> None:
    one = flux_pipe()
    plain = one.run(steps=4, **SIZE)
    apply(one.pipeline, config(merge_steps=(0.5, 1)), regional=True, **EAGER)
    seen: list[torch.Tensor] = []

    def keep(_: Any, step: int, __: Any, values: dict[str, Any]) -> dict[str, Any]:
        seen.append(values["latents"])
        return {}

    merged = one.run(steps=4, callback_on_step_end=keep, **SIZE)
    assert ran(one.pipeline) == {"plain": 2, "merged": 2}
    assert not torch.allclose(merged, plain, atol=1e-3)
    first: list[torch.Tensor] = []
    remove(one.pipeline)
    seen, first = [], seen
    one.run(steps=4, callback_on_step_end=keep, **SIZE)
    assert [torch.allclose(a, b, atol=1e-5) for a, b in zip(first, seen, strict=True)] == [
        *(True, True),
        *(False, False),
    ]


def test_the_first_blocks_of_a_class_stay_at_full_length() -> None:
    one, how = flux_pipe(), config(scope="region", share="block", skip_blocks=1)
    pictures = []
    for regional in (False, True):
        enable(one.pipeline, how, regional=regional, **EAGER)
        pictures.append(one.run(**SIZE))
    assert torch.allclose(*pictures, atol=1e-4)
    assert last_report().merged
    enable(one.pipeline, config(scope="region", share="block"), regional=True, **EAGER)
    assert not torch.allclose(one.run(**SIZE), pictures[0], atol=1e-3)


def test_what_blocks_cannot_do_is_said_at_the_door() -> None:
    one = sdxl_pipe()
    with pytest.raises(ConfigError, match="regional must be True or False"):
        apply(one.pipeline, regional="yes")
    with pytest.raises(PipelineError, match="no blocks that repeat"):
        apply(nn.Linear(2, 2), regional=True)
    one.denoiser.compile_repeated_blocks(backend="eager")
    with pytest.raises(PipelineError, match="blocks of the denoiser are compiled already"):
        apply(one.pipeline, regional=True)
    assert not is_applied(one.pipeline)


def test_a_model_that_is_followed_stays_followed() -> None:
    one = flux_pipe()
    toma_fx.follow(one.denoiser)
    apply(one.denoiser, config(), regional=True, **EAGER)
    remove(one.denoiser)
    assert is_followed(one.denoiser)


def test_remove_frees_what_was_compiled() -> None:
    one, before = flux_pipe(), compiles()
    apply(one.pipeline, config(), regional=True, **EAGER)
    one.run(**SIZE)
    # One for each class: blocks behind each other lay their results out as plain ones do.
    assert compiles() - before == len({type(block) for block in blocks_of(one.denoiser)}) == 2
    kept = [weakref.ref(owner) for owner in toma_fx.owners.owners_in(one.denoiser)]
    remove(one.pipeline)
    gc.collect()
    gc.collect()
    assert kept
    assert [owner() for owner in kept] == [None] * len(kept)
