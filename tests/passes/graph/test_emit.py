"""Traced functions inlined into a graph that is being built."""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from toma_fx.passes.graph.emit import Emitter


def double(x: Tensor) -> Tensor:
    return x + x


def difference(x: Tensor, y: Tensor) -> Tensor:
    return x - y


def test_two_results_of_one_trace_stay_two() -> None:
    """Traces are kept with their values: what reads two of one must not take them for one."""
    graph = fx.Graph()
    module = fx.GraphModule(torch.nn.Module(), graph)
    emit = Emitter(module, graph, FakeTensorMode(allow_non_fake_inputs=True))
    first, second = (emit.buffer(name, lambda: torch.ones(3)) for name in ("first", "second"))
    graph.output(emit.inline(difference, emit.inline(double, first), emit.inline(double, second)))
    module.recompile()
    module.second.fill_(5)
    assert module().tolist() == [-8, -8, -8]
