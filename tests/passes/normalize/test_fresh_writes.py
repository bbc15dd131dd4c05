"""Writes into tensors that the graph made are values afterwards, and mean the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from tests.helpers import capture
from toma_fx.passes.graph.nodes import writes
from toma_fx.passes.normalize.normalize import normalize

View = Callable[[Tensor], Tensor]
Write = Callable[[Tensor, Tensor], object]

SIZES = (2, 6, 4)
VIEWS: list[View] = [
    lambda t: t,
    lambda t: t[0],
    lambda t: t[:, 1::2],
    lambda t: t[..., :2],
    lambda t: t[:, 2:5],
    lambda t: t.transpose(0, 1),
    lambda t: t.permute(2, 0, 1)[1:],
    lambda t: t.view(2, 3, 8)[:, 1],
    lambda t: t.flatten(0, 1)[3:7],
    lambda t: t.unsqueeze(1)[:, :, 4],
    lambda t: t.unflatten(1, (2, 3))[:, :, 0],
    lambda t: t[1, :, 3],
]
WRITES: list[Write] = [
    lambda view, other: view.copy_(other.sum()),
    lambda view, other: view.mul_(1.5),
    lambda view, other: view.add_(other.mean()),
    lambda view, other: view.fill_(2),
    lambda view, other: view.sub_(view.sum(-1, keepdim=True)),
    lambda view, other: view.masked_fill_(view > 0.5, -1),
    lambda view, other: view.zero_(),
    lambda view, other: view.copy_(view.flip(-1)),
]
FRESH: list[Callable[[Tensor], Tensor]] = [
    lambda x: torch.zeros_like(x),
    lambda x: x.clone(),
    lambda x: x * 2,
    lambda x: torch.ones(SIZES),
    lambda x: x.new_full(x.shape, 0.5),
]


class Program(nn.Module):
    """Writes, one after the other, with readers before and after them."""

    def __init__(self, fresh: int, steps: list[tuple[int, int, int]]) -> None:
        super().__init__()
        self.fresh, self.steps = fresh, steps

    def forward(self, x: Tensor) -> list[Tensor]:
        tensor = FRESH[self.fresh](x)
        early = tensor.transpose(0, 1)  # taken before the writes, read after them
        found = []
        for view, write, reader in self.steps:
            WRITES[write](VIEWS[view](tensor), x)
            found.append(VIEWS[reader](tensor).sin())
        return [*found, tensor.cos(), early.exp()]


def normal(model: nn.Module, *inputs: Tensor) -> fx.GraphModule:
    return normalize(*capture(model, *inputs))


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.data())
def test_any_writes_through_any_views(data: st.DataObject) -> None:
    """Compared with what eager mode computes."""
    step = st.tuples(*(st.integers(0, len(table) - 1) for table in (VIEWS, WRITES, VIEWS)))
    fresh = data.draw(st.integers(0, len(FRESH) - 1))
    model = Program(fresh, data.draw(st.lists(step, min_size=1, max_size=4)))
    x = torch.randn(SIZES)
    given, inputs = capture(model, x)
    gm = normalize(given, inputs)
    assert not any(writes(node) for node in gm.graph.nodes)
    for found, wanted in zip(gm(*inputs), model(x), strict=True):
        assert torch.equal(found, wanted)


def test_other_dtypes_and_sizes_are_brought_into_the_tensors_own() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            out = torch.zeros(2, 6, 4, dtype=torch.float64)
            out[:, :3] = x[0, 0].half()
            out[:, 3] = torch.tensor(3)
            return out

    x = torch.randn(SIZES)
    gm = normal(Model(), x)
    assert not any(writes(node) for node in gm.graph.nodes)
    assert torch.equal(gm(x)[0], Model()(x))


class Outside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.zeros(SIZES))


class IntoInput(Outside):
    def forward(self, x: Tensor) -> Tensor:
        x[:, 0] = 1
        return x.sin()


class IntoBuffer(Outside):
    def forward(self, x: Tensor) -> Tensor:
        self.kept[:, 0] = x[:, 1]
        return self.kept.sin()


class AtRandom(Outside):
    def forward(self, x: Tensor) -> Tensor:
        return x.clone().bernoulli_(0.5)


@pytest.mark.parametrize("model", [IntoInput, IntoBuffer, AtRandom])
def test_what_cannot_be_said_as_a_value_stays_a_write(model: type[Outside]) -> None:
    gm = normal(model(), torch.randn(SIZES))
    assert sum(writes(node) for node in gm.graph.nodes) == 1


def test_a_written_input_is_written() -> None:
    x = torch.randn(SIZES)
    gm, twin = normal(IntoInput(), x.clone()), x.clone()
    assert torch.equal(gm(x)[0], IntoInput()(twin))
    assert torch.equal(x, twin)


def test_what_is_written_through_a_part_of_a_split() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            fresh = x.clone()
            fresh.chunk(2, 1)[0].mul_(2)
            fresh.unbind(2)[1].zero_()
            return fresh

    x = torch.randn(SIZES)
    gm = normal(Model(), x)
    assert torch.equal(gm(x)[0], Model()(x))


def test_a_split_is_read_as_it_stands() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            fresh = x.clone()
            before, _ = fresh.chunk(2, 1)
            fresh[:, 0] = 7
            _, behind = fresh.unbind(0)
            return before.sum() + behind.sum() + fresh.split([1, 5], 1)[0].sum()

    x = torch.randn(SIZES)
    gm = normal(Model(), x)
    assert not any(writes(node) for node in gm.graph.nodes)
    assert torch.equal(gm(x)[0], Model()(x))
