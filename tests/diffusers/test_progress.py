"""Where a pipeline stands, by its timesteps or its scheduler, whatever the scheduler."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from toma_fx.diffusers.caller import announced, mark
from toma_fx.diffusers.progress import Moment, Progress

SCHEDULERS = (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)


class Pipeline:
    """The loop of a pipeline, from a part of its schedule on."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler

    def moments(
        self, progress: Progress, steps: int, strength: float = 1.0, copies: bool = False
    ) -> Iterator[tuple[Moment, int]]:
        """Each call of the denoiser, twice a step, with the number of steps that run."""
        self.scheduler.set_timesteps(steps)
        start = round(len(self.scheduler.timesteps) * (1 - strength))
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(start)
        sample = torch.zeros(1, 4, 8, 8)
        timesteps = self.scheduler.timesteps[start:]
        for timestep in timesteps:
            given = timestep.expand(2)
            for _ in range(2):  # both halves of guidance
                yield progress.follow(given / 1000 if copies else given), len(timesteps)
            self.scheduler.step(torch.zeros_like(sample), timestep, sample, return_dict=False)


def followed(*pipelines: Any) -> Progress:
    progress = Progress()
    for pipeline in pipelines:
        progress.add(pipeline)
    return progress


def assert_counts(moments: list[tuple[Moment, int]]) -> None:
    """One beginning, and the shares of the steps that run."""
    assert [moment.begins for moment, _ in moments] == [place == 0 for place in range(len(moments))]
    assert [moment.step for moment, _ in moments] == [place // 2 for place in range(len(moments))]
    for place, (moment, steps) in enumerate(moments):
        assert moment.share == (place // 2) / steps


@pytest.mark.parametrize("strength", [1.0, 0.5, 0.3])
@pytest.mark.parametrize("build", SCHEDULERS)
def test_parts_of_the_schedule_tell_steps(build: Any, strength: float) -> None:
    pipeline = Pipeline(build())
    progress = followed(pipeline)
    for steps in (4, 7, 7):
        moments = list(pipeline.moments(progress, steps, strength))
        assert moments
        assert_counts(moments)
        assert all(moment.pipeline is pipeline for moment, _ in moments)


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("build", [b for b in SCHEDULERS if hasattr(b(), "set_begin_index")])
def test_copies_are_followed_by_the_scheduler(build: Any, strength: float) -> None:
    pipeline = Pipeline(build())
    progress = followed(pipeline)
    for steps in (4, 7):
        assert_counts(list(pipeline.moments(progress, steps, strength, copies=True)))


@pytest.mark.parametrize("build", [DDIMScheduler, EulerDiscreteScheduler])
def test_a_picture_that_was_left_is_not_gone_on_with(build: Any) -> None:
    pipeline = Pipeline(build())
    progress = followed(pipeline)
    moments = pipeline.moments(progress, 5)
    for _ in range(3):
        next(moments)
    assert_counts(list(pipeline.moments(progress, 4)))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("copies", [True, False])
def test_two_pipelines_in_turns(shared: bool, copies: bool) -> None:
    scheduler = EulerDiscreteScheduler()
    one, two = (Guided(scheduler if shared else EulerDiscreteScheduler()) for _ in range(2))
    progress = followed(one, two)
    for pipeline in (one, two, two, one):
        pipeline.begin(5.0)
        moments = list(pipeline.moments(progress, 4, 0.5, copies=copies))
        assert_counts(moments)
        assert {id(moment.pipeline) for moment, _ in moments} == {id(pipeline)}


def test_a_schedule_that_nobody_has_tells_steps_all_the_same() -> None:
    progress, stranger = Progress(), Pipeline(EulerDiscreteScheduler())
    for _ in range(2):
        moments = list(stranger.moments(progress, 6, 0.5))
        assert_counts(moments)
        assert all(moment.pipeline is None for moment, _ in moments)
    assert progress.follow(torch.tensor([1.0])) == Moment()
    assert progress.follow(7) == Moment()


def test_a_stranger_after_a_picture_that_is_done_is_not_followed() -> None:
    mine, stranger = Guided(EulerDiscreteScheduler()), Pipeline(EulerDiscreteScheduler())
    progress = followed(mine)
    mine.begin(5.0)
    assert_counts(list(mine.moments(progress, 4, copies=True)))
    strange = [moment for moment, _ in stranger.moments(progress, 4, copies=True)]
    assert set(strange) == {Moment()}


def test_steps_of_a_picture_that_ends_early_are_those_that_run() -> None:
    pipeline = Guided(DDIMScheduler())
    progress = followed(pipeline)
    pipeline.begin(5.0)
    pipeline.num_timesteps = 4
    shares = [moment.share for moment, _ in pipeline.moments(progress, 8)]
    assert shares[:8] == [0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75]


class Guided(Pipeline):
    """As those of diffusers: it stores its guidance scale where a picture begins."""

    num_timesteps: int | None = None

    def begin(self, scale: float) -> None:
        self._guidance_scale = scale

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale


def test_a_pipeline_announces_itself_by_its_guidance() -> None:
    one, two, plain = Guided(None), Guided(None), Pipeline(None)
    for pipeline in (one, two, plain):
        mark(pipeline)
    assert announced([one, two]) is None
    assert announced([one]) is None  # it can announce itself, and has not
    assert announced([plain]) is plain
    for scale in (5.0, 5.0, 7):
        one.begin(scale)
        assert announced([one, two]) is one
        mark(one)
        assert one.guidance_scale == scale
        assert announced([one, two]) is None
    one.begin(1.0)
    two.begin(1.0)
    assert announced([one, two]) is None
