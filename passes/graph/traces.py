"""Traces of small functions, kept for the process: most compiles ask for the same ones.

A trace of thirty operations takes a tenth of a second, a copy of it a few milliseconds. Its values
belong to no compile, so that it keeps none alive: who copies a trace gives it values of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

KEPT = 1024
"""Traces of a process, the latest used ones: about 30 kB each."""


@dataclass(frozen=True)
class Kind:
    """What is known of a tensor before it has values."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, value: Tensor) -> Kind:
        return cls(tuple(value.shape), tuple(value.stride()), value.dtype, value.device)

    def empty(self) -> Tensor:
        """A tensor of this kind, fake where a fake mode is on."""
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=self.device)


def trace(fn: Callable[..., Any], *args: Kind | Hashable) -> fx.GraphModule:
    """What `fn` does, as operations before dispatch. Not to be changed: others hold it too.

    Args:
        fn: traced without gradients.
        args: of `fn`: kinds become placeholders, everything else is a constant of the trace.
    """
    return _trace(_ambient(args), fn, *args)


def _ambient(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a trace depends on beside its arguments: autocast writes casts into it."""
    devices = sorted({arg.device.type for arg in args if isinstance(arg, Kind)})
    known = filter(torch.amp.is_autocast_available, devices)
    casts = [(d, torch.get_autocast_dtype(d)) for d in known if torch.is_autocast_enabled(d)]
    deterministic = torch.are_deterministic_algorithms_enabled()
    return torch.get_default_dtype(), deterministic, *casts


@lru_cache(maxsize=KEPT, typed=True)
def _trace(_: tuple[Any, ...], fn: Callable[..., Any], *args: Any) -> fx.GraphModule:
    def on_tensors(*values: Tensor) -> Any:
        given = iter(values)
        return fn(*(next(given) if isinstance(arg, Kind) else arg for arg in args))

    with FakeTensorMode():
        values = [arg.empty() for arg in args if isinstance(arg, Kind)]
    tracer = make_fx(on_tensors, pre_dispatch=True, tracing_mode="fake")
    with torch.no_grad():
        return tracer(*values)
