"""Which stream a call belongs to, in the thread that makes it."""

from __future__ import annotations

from collections.abc import Iterator, Set
from contextlib import contextmanager
from contextvars import ContextVar

from torch import nn

DEFAULT_STREAM = "default"

# Those that are open here, innermost last, with the parameters of their models. Not in the process:
# two threads may run two streams of one model.
_open: ContextVar[tuple[tuple[Set[int], str], ...]] = ContextVar("toma_fx streams", default=())


def ids_of(model: nn.Module) -> set[int]:
    """By which streams, owners and followed models are known: the `id` of each parameter."""
    return {id(parameter) for parameter in model.parameters()}


@contextmanager
def opened(parameters: Set[int], name: str) -> Iterator[None]:
    """Calls inside, of models with one of these parameters, belong to the stream of this name."""
    entry = (parameters, name)
    _open.set((*_open.get(), entry))
    try:
        yield
    finally:
        # Contexts may be left in any order: remove this one, not the innermost.
        _open.set(tuple(other for other in _open.get() if other is not entry))


def stream_of(parameters: Set[int]) -> str:
    """The innermost open stream of a model with one of these parameters, by `id`."""
    for theirs, name in reversed(_open.get()):
        if not theirs.isdisjoint(parameters):
            return name
    return DEFAULT_STREAM


def stream_here(model: nn.Module) -> str:
    """The innermost open stream of a model."""
    return stream_of(ids_of(model)) if any_open() else DEFAULT_STREAM


def any_open() -> bool:
    """Whether any stream is open here."""
    return bool(_open.get())
