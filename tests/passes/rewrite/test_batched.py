"""Graphs for two batches, and what they have in common."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from toma_fx.errors import CannotRewrite
from toma_fx.passes.rewrite.batched import Batched, Generaliser, Size

ONE, OTHER = 3, 13


def graph(model: Callable[[Tensor], Tensor], batch: int) -> fx.GraphModule:
    return make_fx(model, tracing_mode="fake")(torch.randn(batch, 4, 6))


def generalised(model: Callable[[Tensor], Tensor]) -> tuple[fx.GraphModule, Batched]:
    graphs = graph(model, ONE), graph(model, OTHER)
    mode = FakeTensorMode(shape_env=ShapeEnv())
    given = [mode.from_tensor(torch.randn(ONE, 4, 6))]
    found = Generaliser(graphs, (ONE, OTHER), given, 0).run()
    return graphs[0], found


def folded(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0] * 4, 6) + torch.arange(x.shape[0] * 4 + 1)[1:, None]


def test_a_graph_serves_every_batch() -> None:
    made, found = generalised(folded)
    assert found == Batched(0, ONE, {})
    for batch in (1, 2, 3, 7, 50):
        x = torch.randn(batch, 4, 6)
        assert torch.equal(made(x), folded(x))


@pytest.mark.parametrize(
    "model",
    [
        lambda x: x[: (x.shape[0] + 3) // 2],  # rounded
        lambda x: x.sin() if x.shape[0] > 5 else x.cos(),
        lambda x: torch.stack(x.unbind(0)),
        lambda x: x * (0.1 * x.shape[0]),
    ],
    ids=["a part of the batch", "another operation", "each item", "a float"],
)
def test_graphs_that_differ_in_more_are_refused(model: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(CannotRewrite):
        generalised(model)


def test_a_constant_of_the_batch_is_refused() -> None:
    graphs = []
    for batch in (ONE, OTHER):
        made = graph(lambda x: x + 1, batch)
        made.register_buffer("table", torch.zeros(batch, 1, 1))
        first = next(n for n in made.graph.nodes if n.op == "call_function")
        with made.graph.inserting_before(first):
            first.args = (first.args[0], made.graph.get_attr("table"))
        graphs.append(made)
    with pytest.raises(CannotRewrite, match="a constant is another one"):
        Generaliser((graphs[0], graphs[1]), (ONE, OTHER), [], 0).run()


def test_sizes_grow_evenly() -> None:
    assert [Size(4).at(9), Size(1, 2).at(9), Size(0, 3).at(2)] == [4, 19, 6]
