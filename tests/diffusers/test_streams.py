"""Pictures that take turns at the door, each in a stream of its own, are what they are alone."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from torch import Tensor

import toma_fx
from tests.diffusers.door import EAGER, Fold, config, fresh, no_recompile, picture
from tests.diffusers.test_resting import Told
from toma_fx.diffusers import apply
from toma_fx.reuse import reuse_stats

__all__ = ["fresh"]  # the fixture of these tests

METHODS: dict[str, dict[str, Any]] = {
    "toma": {},
    "refresh": {"method": "refresh"},
    "rests": {"method": "refresh", "rest_every": 2, "dense_steps": (-1,)},
    "some steps": {"merge_steps": (0.3, 1.0)},
}


class Loop:
    """A pipeline that makes one call of its denoiser at a time."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.transformer, self.scheduler = model, EulerDiscreteScheduler()

    def steps(self, seed: int, copies: bool, stream: str, count: int = 7) -> Iterator[Tensor]:
        self.scheduler.set_timesteps(count)
        sample, words = picture(seed=seed), torch.ones(1, 3, 8)  # one prompt for all
        for timestep in self.scheduler.timesteps:
            given = timestep / 1000 if copies else timestep
            more = (words,) if isinstance(self.transformer, Told) else ()
            with toma_fx.stream(self.transformer, stream):
                found = self.transformer(sample, given, *more)
            sample = self.scheduler.step(0.1 * found, timestep, sample).prev_sample
            yield sample


@pytest.mark.parametrize("copies", [False, True], ids=["parts", "copies"])
@pytest.mark.parametrize("method", METHODS)
def test_pictures_that_take_turns_are_those_made_alone(method: str, copies: bool) -> None:
    """With timesteps that are parts of the schedule (SDXL), and with copies of them (Flux)."""
    model = Told() if "method" in METHODS[method] else Fold()
    loops = [Loop(model), Loop(model)]
    apply(loops, config(**METHODS[method]), **EAGER)
    alone = {seed: list(loops[0].steps(seed, copies, "a")) for seed in range(4)}
    assert not torch.equal(alone[0][-1], alone[1][-1])
    list(loops[1].steps(0, copies, "b"))
    with no_recompile():
        for first, second in ((0, 1), (2, 3), (3, 3)):
            together = loops[0].steps(first, copies, "a"), loops[1].steps(second, copies, "b")
            for step, found in enumerate(zip_longest(*together)):
                assert torch.equal(found[0], alone[first][step])
                assert torch.equal(found[1], alone[second][step])


@pytest.mark.parametrize("copies", [False, True], ids=["parts", "copies"])
def test_a_picture_that_begins_leaves_others_alone(copies: bool) -> None:
    """One is abandoned half way and its stream paints another; plans are made on schedule."""
    model = Fold()
    loops = [Loop(model), Loop(model)]
    apply(loops, config(select_every=4, weigh_every=4), **EAGER)
    alone = {seed: list(loops[0].steps(seed, copies, "a")) for seed in range(3)}
    list(loops[1].steps(0, copies, "b"))
    before = reuse_stats(model).selections
    long, short = loops[0].steps(0, copies, "a"), loops[1].steps(1, copies, "b")
    for step in range(3):
        assert torch.equal(next(long), alone[0][step])
        assert torch.equal(next(short), alone[1][step])
    short = loops[1].steps(2, copies, "b")
    for step in range(3, 7):
        assert torch.equal(next(long), alone[0][step])
        assert torch.equal(next(short), alone[2][step - 3])
    assert reuse_stats(model).selections - before == 2 + 1 + 1  # at 0 and 4, at 0, at 0
