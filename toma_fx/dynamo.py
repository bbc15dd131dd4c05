"""What toma_fx asks of Dynamo beside its interface for backends.

Dynamo keeps what it compiled, and counts recompiles, by code object. A function with a code object
of its own therefore has a count of its own, and can be forgotten without touching other models.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import types
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch._dynamo.exc import BackendCompilerFailed
from torch._dynamo.utils import guard_failures

from toma_fx.errors import AutogradError, ConfigError, TomaError

F = TypeVar("F", bound=Callable[..., Any])

_copies = itertools.count()


def private_copy(function: F, name: str) -> F:
    """A function that does the same, with a code object of its own.

    Its name is its own as well: sizes that were seen to change are remembered by name and line,
    and would make the next copy's sizes symbolic.
    """
    code = function.__code__.replace(co_name=f"{name}_{next(_copies)}")
    copy = types.FunctionType(code, function.__globals__, code.co_name, function.__defaults__)
    return copy  # type: ignore[return-value]


def forget(function: Callable[..., Any]) -> None:
    """Drop what Dynamo compiled of a private copy.

    Without this it is kept for ever: compiled code refers to the code that it was made of, which
    holds it.
    """
    code = function.__code__
    torch._dynamo.reset_code(code)
    guard_failures.pop(code, None)


@functools.cache
def own_count(limit: int) -> dict[str, Any]:
    """Arguments of `torch.compile` that let a call count its own recompiles, where there are any.

    Graph breaks compile functions that others share; from torch 2.13 on even those are counted
    by the call.
    """
    known = inspect.signature(torch.compile).parameters
    wanted = {"isolate_recompiles": True, "recompile_limit": limit}
    return {name: value for name, value in wanted.items() if name in known}


class _HandedOn(BackendCompilerFailed):
    """Mixed into an error: Dynamo hands on what looks like its own, and wraps the rest."""

    def __str__(self) -> str:
        return str(self.inner_exception)


def handed_on(error: TomaError, frame: types.FrameType | None) -> TomaError:
    """The same error, of a class that reaches the caller of a compiled model.

    It is what it was, and what Dynamo would have wrapped it in, so that either `except` works.

    Args:
        error: a `ConfigError` or an `AutogradError`; any other comes back as it is.
        frame: of the backend; what Dynamo did on the way to it is cut from the trace.
    """
    for kind, both in _BOTH.items():
        if isinstance(error, kind):
            found = both("toma", error, frame)
            found.args = (str(error),)
            return found
    return error


_BOTH: dict[type[TomaError], Callable[..., TomaError]] = {
    kind: type(kind.__name__, (_HandedOn, kind), {"__module__": kind.__module__})
    for kind in (ConfigError, AutogradError)
}
