"""The form of a painter's denoiser that a contestant runs; the denoiser itself stays as it is."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.quality import caches
from benchmarks.quality.contestant import Contestant
from benchmarks.quality.own import compile_in_place, twin
from benchmarks.quality.painters import Cast, Painter
from toma_fx import TomaConfig, guard
from toma_fx.backend import toma_backend
from toma_fx.diffusers import TokenMergingConfig, apply


def form(
    painter: Painter, one: Contestant, steps: int, backend: str
) -> AbstractContextManager[nn.Module]:
    """A module in place of the painter's denoiser, compiled where it is first called.

    Several may be open beside one another.

    Args:
        painter: whose denoiser it is.
        one: a cache's threshold must be settled.
        steps: of a generation; only caches ask for it.
        backend: that compiles it, or the rewritten graph; "eager" compiles nothing.
    """
    if one.cache is not None:
        return caches.cached(painter, one.cache, steps, backend, one.options)
    if one.options is None:
        return nullcontext(_plain(painter, one.dtype, backend))
    made = _at_the_door if hosted(one.options) else _merged
    return made(painter, one, backend)


def config_of(options: dict[str, Any]) -> TomaConfig:
    """What a contestant's options say, as the one of both classes that has them."""
    return TokenMergingConfig(**options) if hosted(options) else TomaConfig(**options)


def hosted(options: dict[str, Any]) -> bool:
    """Whether an option needs the host to know the step."""
    return not options.keys() <= set(TomaConfig.field_names())


def _plain(painter: Painter, dtype: str | None, backend: str) -> nn.Module:
    model = twin(painter.denoiser)
    if dtype is not None:
        asked = getattr(torch, dtype)
        model = twin(Cast(copy.deepcopy(caches.core_of(model)).to(asked), asked))
    compile_in_place(model, backend)
    return model


@contextmanager
def _merged(painter: Painter, one: Contestant, backend: str) -> Iterator[nn.Module]:
    model = twin(painter.denoiser)
    compile_in_place(model, _merging(one, backend))
    unguarded = mock.patch("toma_fx.passes.rewrite.clock.decide", _keep_for_ever)
    with torch.no_grad(), nullcontext() if one.guarded else unguarded:
        yield model


def _merging(one: Contestant, backend: str) -> Callable[..., Any]:
    options = {**(one.options or {}), "inner_backend": backend}
    if not one.guarded:
        options["guard"] = ("timestep",)  # one plan, whatever the prompt
    return functools.partial(toma_backend, options=options)


@contextmanager
def _at_the_door(painter: Painter, one: Contestant, backend: str) -> Iterator[nn.Module]:
    """Behind `toma_fx.diffusers`, which follows the painter's scheduler."""
    model = twin(painter.denoiser)
    pipeline = _Beside(painter.pipeline, painter.place, model)
    apply(pipeline, TokenMergingConfig(**(one.options or {})), options={"inner_backend": backend})
    with torch.no_grad():
        yield model


class _Beside:
    """A pipeline with another denoiser; its loop goes on with its own."""

    def __init__(self, pipeline: Any, place: str, model: nn.Module) -> None:
        self._pipeline = pipeline
        setattr(self, place, model)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipeline, name)


def _keep_for_ever(memory: Tensor, slots: Tensor, tally: Tensor, *seen: Any) -> tuple[Tensor, ...]:
    """`guard.decide` without its judgement: plan once, reuse for ever."""
    _, *rest = guard.decide(memory, slots, tally, *seen)
    phase = torch.where(tally[guard.FRESH] == guard.COLD, guard.SELECT, guard.REUSE)
    return phase.to(torch.int32), *rest
