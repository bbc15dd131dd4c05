"""A model that Dynamo traces once, and the backend compiles as often as a test has options.

Of a compile with the eager inner backend, tracing takes two thirds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._guards import TracingContext, tracing

from toma_fx import toma_backend


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
        context = TracingContext.get()
        made: tuple[dict[str, Any], Callable[..., Any]] | None = None

        @torch._dynamo.disable
        def run(*inputs: Any) -> Any:
            nonlocal made
            if made is None or made[0] is not self._options:
                with tracing(context):
                    made = self._options, toma_backend(gm, examples, options=self._options)
            return made[1](*inputs)

        return run
