"""What the engines have in common: how they are asked, and what compiles their denoisers."""

from __future__ import annotations

import functools
import inspect
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn

from toma_fx.backend import compile_merged, tell_limit
from toma_fx.compiler import choose
from toma_fx.dynamo import handed_on
from toma_fx.errors import AutogradError, ConfigError, PlainModelWarning, TomaWarning
from toma_fx.following import follow
from toma_fx.limits import Limit, listen, shared_advice

VARIABLE = "TOMA_FX"
"""The environment variable that asks an engine to merge; its workers inherit it."""

Backend = Callable[..., Any]


def asked() -> dict[str, Any] | None:
    """The options in `TOMA_FX`, a JSON object; None where it is unset or empty.

    Raises:
        ConfigError: it holds anything else.
    """
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return None
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{VARIABLE} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(
            f"{VARIABLE} must be a JSON object of options, {{}} for the defaults, not {text}"
        )
    return found


def backend_with(options: Mapping[str, Any]) -> Backend:
    """A backend of `torch.compile` that merges denoisers, and passes other graphs on silently.

    Args:
        options: as `torch.compile(backend="toma", options=...)` takes them. They win over those
            that the engine passes.

    Raises:
        ConfigError: an option is unknown or out of range.
    """
    choose(None, options)
    return functools.partial(_compile, dict(options))


def _compile(
    own: Mapping[str, Any],
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    try:
        config, compiler = choose(mode, {**(options or {}), **own})
        return compile_merged(gm, example_inputs, config, compiler, everywhere=True)[0]
    except (ConfigError, AutogradError) as error:
        raise handed_on(error, inspect.currentframe()) from None


def _met(limit: Limit, *_: object) -> None:
    tell_limit(limit, shared_advice(limit))


listen(_compile, _met)


@contextmanager
def compiling_with(backend: Backend) -> Iterator[None]:
    """Calls of `torch.compile` that name no backend take this one meanwhile, on every thread."""
    if not hasattr(torch.compiler, "set_default_backend"):  # before torch 2.13
        plain = torch.compile
        torch.compile = functools.partial(plain, backend=backend)
        try:
            yield
        finally:
            torch.compile = plain
        return
    before = torch.compiler.get_default_backend()
    torch.compiler.set_default_backend(backend)
    try:
        yield
    finally:
        torch.compiler.set_default_backend(before)


def follow_in(engine: str, holder: object, names: Iterable[str]) -> None:
    """Follow the denoisers that a pipeline holds by these names; says so where it holds none."""
    names = tuple(names)
    found = [getattr(holder, name, None) for name in names]
    models = [model for model in found if isinstance(model, nn.Module)]
    for model in models:
        follow(model)
    if not models:
        warnings.warn(
            f"toma_fx: {type(holder).__name__} of {engine} has no {' or '.join(names)} to follow: "
            "blocks that are compiled apart plan at every call, or are left as they are. Follow "
            "the denoiser by hand: toma_fx.follow(model)",
            TomaWarning,
            stacklevel=3,
        )


def tell_plain(engine: str, cure: str) -> None:
    """Say that an engine was asked to merge and compiles nothing."""
    text = f"toma_fx: the plain model runs: {engine} compiles nothing. {cure}"
    warnings.warn(text, PlainModelWarning, stacklevel=3)
