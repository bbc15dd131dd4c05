"""Traces are made once in a process, and belong to no compile."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from toma_fx.passes.graph.emit import Emitter
from toma_fx.passes.graph.traces import Kind, trace

KIND = Kind((2, 3), (3, 1), torch.float32, torch.device("cpu"))


def scaled(x: Tensor, by: float) -> Tensor:
    return x * by


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[:1], x[1:]


def product(x: Tensor, y: Tensor) -> Tensor:
    return x @ y.t()


def emitted(mode: FakeTensorMode) -> fx.GraphModule:
    graph = fx.Graph()
    module = fx.GraphModule(torch.nn.Module(), graph)
    emit = Emitter(module, graph, mode)
    node = emit.buffer("x", lambda: torch.arange(6.0).reshape(2, 3))
    graph.output(emit.inline(halves, emit.inline(scaled, node, 2)))
    module.recompile()
    return module


def test_equal_calls_are_traced_once() -> None:
    assert trace(scaled, KIND, 2) is trace(scaled, KIND, 2)


@pytest.mark.parametrize("other", [(KIND, 2.0), (KIND, True), (KIND, 3)])
def test_another_constant_is_another_trace(other: tuple[Kind, float]) -> None:
    """Numbers that are equal may still give results of other dtypes."""
    assert trace(scaled, KIND, 2) is not trace(scaled, *other)
    assert trace(scaled, KIND, 1) is not trace(scaled, KIND, True)


@pytest.mark.parametrize(
    "other",
    [
        Kind((2, 4), (4, 1), KIND.dtype, KIND.device),
        Kind((2, 3), (1, 2), KIND.dtype, KIND.device),
        Kind((2, 3), (3, 1), torch.bfloat16, KIND.device),
        Kind((2, 3), (3, 1), KIND.dtype, torch.device("meta")),
    ],
)
def test_another_kind_is_another_trace(other: Kind) -> None:
    assert trace(scaled, KIND, 2) is not trace(scaled, other, 2)


def test_autocast_writes_a_trace_of_its_own() -> None:
    plain = trace(product, KIND, KIND)
    with torch.autocast("cpu", torch.bfloat16):
        cast = trace(product, KIND, KIND)
        assert trace(product, KIND, KIND) is cast
    assert trace(product, KIND, KIND) is plain
    assert cast is not plain


def test_values_are_those_of_the_compile() -> None:
    for _ in range(2):
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        module = emitted(mode)
        found = [node.meta["val"] for node in module.graph.nodes if node.op == "call_function"]
        assert found
        assert all(value.fake_mode is mode for value in found)
        first, second = module()
        assert first.tolist() == [[0, 2, 4]]
        assert second.tolist() == [[6, 8, 10]]


def test_a_trace_keeps_no_compile_alive() -> None:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    emitted(mode)
    ended = weakref.ref(mode)
    del mode
    gc.collect()
    assert ended() is None
