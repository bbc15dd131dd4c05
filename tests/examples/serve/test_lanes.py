"""Lanes of a pipeline: schedulers of their own, a hook behind each step, a package as denoiser."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch

from examples.serve.lanes import Packaged, PipelineLane, _pipeline_lane, after_each_step
from tests.pipelines import PIPES, Pipe


class Package:
    """Calls the model that it stands for, as a package of it would."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model, self.calls = model, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.model(*args, **kwargs)


@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_a_package_is_called_in_place_of_the_denoiser(name: str) -> None:
    pipe: Pipe = PIPES[name]()
    package = Package(pipe.denoiser)
    lane = _pipeline_lane(pipe.pipeline, package)  # type: ignore[arg-type]
    other = Pipe(lane.pipeline, pipe.component, pipe.widths, pipe.negative)
    assert isinstance(other.denoiser, Packaged)
    assert torch.equal(other.run(steps=2), pipe.run(steps=2))
    assert package.calls == 2
    assert lane.denoiser is pipe.denoiser  # the first pipeline is as it was


def test_lanes_share_weights_and_no_scheduler() -> None:
    pipe = PIPES["flux"]()
    lanes = [_pipeline_lane(pipe.pipeline, None) for _ in range(2)]
    schedulers = {id(lane.pipeline.scheduler) for lane in lanes} | {id(pipe.pipeline.scheduler)}
    assert len(schedulers) == 3
    assert lanes[0].denoiser is lanes[1].denoiser
    assert lanes[0].pipeline.vae is lanes[1].pipeline.vae


def test_something_is_called_behind_each_step() -> None:
    pipe = PIPES["sdxl"]()
    before = inspect.signature(pipe.pipeline.scheduler.step)
    steps: list[int] = []
    lane = PipelineLane(copy.copy(pipe.pipeline), pipe.denoiser, None)
    after_each_step(lane, lambda: steps.append(len(steps)))
    pipe.run(steps=3)
    assert steps == [0, 1, 2]
    assert inspect.signature(pipe.pipeline.scheduler.step) == before
