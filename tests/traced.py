"""A model that Dynamo traces once, and the backend compiles as often as a test has options.

Of a compile with the eager inner backend, tracing takes two thirds, and half of the passes is to
normalize, which depends on no option.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import fx, nn
from torch._guards import TracingContext, tracing

from toma_fx import toma_backend
from toma_fx.passes import runner
from toma_fx.passes.normalize.normalize import normalize


class Normal:
    """What one graph is normalized to, by the first passes that ask; no later one changes it."""

    def __init__(self) -> None:
        self._known: fx.GraphModule | None = None

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Passes that run in here are given the same graph."""
        with mock.patch.object(runner, "normalize", self._normalize):
            yield

    def _normalize(self, gm: fx.GraphModule, inputs: Sequence[Any]) -> fx.GraphModule:
        if self._known is None:
            self._known = normalize(gm, inputs)
        return self._known


class Traced:
    """One model, whose calls have one set of shapes."""

    def __init__(self, model: nn.Module) -> None:
        self._call = torch.compile(model, backend=self._trace, fullgraph=True, dynamic=False)
        self._options: dict[str, Any] = {}

    def compiled(self, **options: Any) -> Callable[..., Any]:
        """As `torch.compile(model, backend="toma", options=options)`, until asked again."""
        self._options = options
        return self._call

    def _trace(self, gm: Any, examples: Any) -> Callable[..., Any]:
        context, normal = TracingContext.get(), Normal()
        made: tuple[dict[str, Any], Callable[..., Any]] | None = None

        @torch._dynamo.disable
        def run(*inputs: Any) -> Any:
            nonlocal made
            if made is None or made[0] is not self._options:
                with tracing(context), normal.kept():
                    made = self._options, toma_backend(gm, examples, options=self._options)
            return made[1](*inputs)

        return run
