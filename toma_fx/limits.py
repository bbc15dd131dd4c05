"""Notice where Dynamo compiles no more, which it decides before any backend is asked.

Behind its limit Dynamo runs the plain function and says so in its log, once a function. That log is
the only place where it shows, so it is read here.
"""

from __future__ import annotations

import functools
import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from toma_fx.dynamo import own_count

_LOGGER = "torch._dynamo.convert_frame"
_MESSAGE = "torch._dynamo hit config."
_WRAPPED = ("_torchdynamo_orig_backend", "compiler_fn")  # where Dynamo's wrappers keep a backend


@dataclass(frozen=True)
class Limit:
    """A limit that Dynamo met.

    Attributes:
        name: of the option, `recompile_limit` or `accumulated_recompile_limit`.
        value: graphs that one function may have.
        function: the function, and where it stands.
        cause: why the latest call fitted no graph, in Dynamo's words, as far as they mean anything.
    """

    name: str
    value: int
    function: str
    cause: str

    @property
    def reason(self) -> str:
        return f"{self.name} ({self.value}) is met; the latest call was new because of {self.cause}"

    def message(self, advice: str) -> str:
        """What happened, and what to do about it."""
        return (
            f"{self.name} ({self.value}) is met for {self.function}: calls that fit no graph "
            f"compiled so far run the plain model. The latest did not fit: {self.cause}. "
            f"To merge it too, {advice}"
        )


_UNTOLD = "'NoneType' object has no attribute"
_BEHIND_A_VIEW = (
    "a size that Dynamo made dynamic; the graph looks at it in the tensor behind a view, and the "
    "latest call has none there"
)


def readable(cause: str) -> str:
    """Dynamo's reason, or what it is where it gives an error of its own check instead."""
    return _BEHIND_A_VIEW if _UNTOLD in cause else cause


def shared_advice(limit: Limit) -> str:
    """What to do where models share a count: whoever calls `torch.compile` has no other."""
    if limit.cause == _BEHIND_A_VIEW:
        return (
            "compile with dynamic=False, which has no such guard, and set torch._dynamo.config."
            f"{limit.name} to twice the number of sizes; or compile by toma_fx.diffusers.apply"
            "(..., regional=True), which counts for each model and needs neither"
        )
    counting = ", ".join(f"{name}={value}" for name, value in own_count(64).items())
    own = f", or by torch.compile(..., {counting})" if counting else ""
    return (
        "compile by toma_fx.diffusers.apply, which counts for each model and size (models of "
        f"diffusers share one function and its count){own}; or raise "
        f"torch._dynamo.config.{limit.name}. torch._dynamo.reset() begins anew"
    )


def listen(backend: Callable[..., Any], callback: Callable[..., None]) -> None:
    """Call `callback(limit, *arguments)` where a function compiled by a backend meets a limit.

    Args:
        backend: the function; `functools.partial` may have bound its first arguments.
        callback: gets the limit, and the arguments that were bound by place.
    """
    _callbacks.append((backend, callback))
    logger = logging.getLogger(_LOGGER)
    if _listener not in logger.handlers:
        logger.addHandler(_listener)


class _Listener(logging.Handler):
    """Hears of limits, and passes on those that concern a backend of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        if not str(record.msg).startswith(_MESSAGE) or not isinstance(record.args, tuple):
            return
        backend, bound = _unwrapped(_compiling())
        for known, callback in _callbacks:
            if known is backend:
                name, value, function, cause = (str(arg).split("\n")[0] for arg in record.args[:4])
                callback(Limit(name, int(value), function, readable(cause)), *bound)


def _compiling() -> Any:
    """The backend for which Dynamo is compiling, of which its log says nothing."""
    for frame, _ in traceback.walk_stack(None):
        if "compiler_fn" in frame.f_locals:
            return frame.f_locals["compiler_fn"]
    return None


def _unwrapped(backend: Any) -> tuple[Any, tuple[Any, ...]]:
    """The function behind what `torch.compile` and `functools.partial` made of it."""
    bound: tuple[Any, ...] = ()
    while True:
        if isinstance(backend, functools.partial):
            backend, bound = backend.func, (*backend.args, *bound)
            continue
        inner = [getattr(backend, name) for name in _WRAPPED if hasattr(backend, name)]
        if not inner:
            return backend, bound
        backend = inner[0]


_callbacks: list[tuple[Callable[..., Any], Callable[..., None]]] = []
_listener = _Listener(logging.WARNING)
