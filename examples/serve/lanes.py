"""Who paints a request: a pipeline with a scheduler of its own, on weights that all lanes share.

A scheduler counts the steps of one picture, so that pictures that take turns need one each. Plans
and memories are kept apart by a stream (`toma_fx.stream`) for each lane; a lane paints one request
at a time, so that there are as many streams as requests under way, and no more after a million.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import nn

import toma_fx
from examples.serve.orders import Order
from examples.serve.settings import Settings
from toma_fx.demo import generators
from toma_fx.demo.pictures import to_image


class Lane(Protocol):
    """Paints one picture at a time.

    Attributes:
        pipeline: with the scheduler of this lane, and the denoiser of all.
        denoiser: called once a step.
        package: that runs in its place; this lane's own, as it has no streams.
    """

    pipeline: Any
    denoiser: nn.Module
    package: toma_fx.LoadedModel | None

    def paint(self, order: Order) -> Image.Image: ...


def lanes_of(settings: Settings, device: torch.device) -> list[Lane]:
    """All lanes of a replica; the weights are loaded once, a package once for each.

    Raises:
        DemoError, OSError: there is no such model.
        PackageError: there is no such package, or not for this machine.
    """
    make = _small_lanes if settings.is_small else _pipeline_lanes
    return make(settings, device, [_package(settings.package) for _ in range(settings.lanes)])


@contextmanager
def on(lane: Lane, number: int) -> Iterator[None]:
    """A picture of this lane: plans of its own, none of the picture before."""
    if lane.package is not None:
        lane.package.reset()
        yield
        return
    with toma_fx.stream(lane.denoiser, f"lane {number}"):
        yield


def after_each_step(lane: Lane, call: Callable[[], None]) -> None:
    """Have the lane's scheduler call something after each step, whatever loop drives it."""
    scheduler = lane.pipeline.scheduler
    step = scheduler.step

    @functools.wraps(step)  # pipelines ask for its signature
    def stepped(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        call()
        return result

    scheduler.step = stepped


@dataclass(eq=False)
class Loop:
    """What `apply` needs to know of the generators' loop, which is no pipeline of diffusers."""

    transformer: nn.Module
    scheduler: Any = field(default_factory=FlowMatchEulerDiscreteScheduler)


@dataclass(eq=False)
class SmallLane:
    """A generator of this project."""

    generator: generators.Generator
    pipeline: Loop
    package: toma_fx.LoadedModel | None

    @property
    def denoiser(self) -> nn.Module:
        return self.generator.model

    def paint(self, order: Order) -> Image.Image:
        (picture,) = generators.generate(
            self.generator,
            [order.prompt],
            [order.seed],
            order.steps,
            model=self.package,
            scheduler=self.pipeline.scheduler,
            size=(order.size.height, order.size.width),
        )
        return to_image(picture.permute(1, 2, 0).cpu())


@dataclass(eq=False)
class PipelineLane:
    """A pipeline of diffusers."""

    pipeline: Any
    denoiser: nn.Module
    package: toma_fx.LoadedModel | None

    @torch.no_grad()
    def paint(self, order: Order) -> Image.Image:
        made = self.pipeline(
            order.prompt,
            width=order.size.width,
            height=order.size.height,
            num_inference_steps=order.steps,
            generator=torch.Generator().manual_seed(order.seed),
            output_type="pil",
        )
        image: Image.Image = made.images[0]
        return image


class Packaged(nn.Module):
    """A package where a pipeline expects its denoiser, which still says what it is.

    Args:
        model: the denoiser; its layers stay in memory, as pipelines ask for some of them.
        package: that is called in its place.
    """

    def __init__(self, model: nn.Module, package: toma_fx.LoadedModel) -> None:
        super().__init__()
        self.model = model
        self._package = package

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._package(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)


Packages = list[toma_fx.LoadedModel | None]


def _package(path: Path | None) -> toma_fx.LoadedModel | None:
    return None if path is None else toma_fx.load(path)


def _small_lanes(settings: Settings, device: torch.device, packages: Packages) -> list[Lane]:
    generator = generators.load(settings.model)
    model = generator.model.to(device)
    return [SmallLane(generator, Loop(model), package) for package in packages]


def _pipeline_lanes(settings: Settings, device: torch.device, packages: Packages) -> list[Lane]:
    dtype = getattr(torch, settings.dtype)
    first = DiffusionPipeline.from_pretrained(
        settings.model, torch_dtype=dtype, local_files_only=True
    ).to(device)
    first.set_progress_bar_config(disable=True)
    return [_pipeline_lane(first, package) for package in packages]


def _pipeline_lane(first: Any, package: toma_fx.LoadedModel | None) -> PipelineLane:
    pipeline = copy.copy(first)
    pipeline.scheduler = copy.deepcopy(first.scheduler)
    place = "unet" if getattr(pipeline, "unet", None) is not None else "transformer"
    denoiser = getattr(pipeline, place)
    if package is not None:
        setattr(pipeline, place, Packaged(denoiser, package))
    return PipelineLane(pipeline, denoiser, package)
