"""Wrapped weights: linears on them are traced as one node and called as their own again."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.testing._internal.two_tensor import TwoTensor

from toma_fx.errors import CannotRewrite
from toma_fx.passes.graph.nodes import aten
from toma_fx.passes.normalize.normalize import normalize
from toma_fx.passes.normalize.wrapped import call_own_linears, is_wrapped


def wrapped(*shape: int) -> Tensor:
    return TwoTensor(torch.randn(shape), torch.randn(shape))


def graph(function: object) -> fx.GraphModule:
    return fx.symbolic_trace(function)


def test_a_linear_is_one_node_until_it_is_called_as_its_own() -> None:
    def model(x: Tensor, w: Tensor, v: Tensor) -> Tensor:
        return F.linear(F.linear(x, w), v)

    inputs = (torch.randn(2, 3, 8), wrapped(8, 8), torch.randn(4, 8))
    normal = normalize(graph(model), inputs)
    assert len(normal.graph.find_nodes(op="call_function", target=aten.linear.default)) == 2
    call_own_linears(normal, inputs)
    assert len(normal.graph.find_nodes(op="call_function", target=F.linear)) == 1
    assert len(normal.graph.find_nodes(op="call_function", target=aten.linear.default)) == 1
    result, expected = normal(*inputs), model(*inputs)
    assert is_wrapped(result)
    assert torch.equal(result.a, expected.a)
    assert torch.equal(result.b, expected.b)


def added(x: Tensor, w: Tensor) -> Tensor:
    return x + w


def transformed(x: Tensor, w: Tensor) -> Tensor:
    return F.linear(w, x)


def both(x: Tensor, w: Tensor) -> Tensor:
    return F.linear(w, w)


@pytest.mark.parametrize("model", [added, transformed, both])
def test_anything_else_is_refused_by_name(model: object) -> None:
    with pytest.raises(CannotRewrite, match=r"a TwoTensor is more than the weight of a linear, at"):
        normalize(graph(model), (torch.randn(8, 8), wrapped(8, 8)))
