"""Constants, position tables and activations are told apart by what they depend on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from tests.helpers import CHANNELS, capture
from toma_fx.passes.graph.inputs import Inputs, is_static
from toma_fx.passes.graph.nodes import aten
from toma_fx.passes.normalize.normalize import normalize

N = 8


class Model(nn.Module):
    """Marks the value under test by `aten.erf`, which nothing else uses."""

    def __init__(self, marked: Callable[..., Tensor]) -> None:
        super().__init__()
        self.marked = marked
        self.linear = nn.Linear(CHANNELS, CHANNELS)
        self.table = nn.Parameter(torch.randn(N, CHANNELS))
        self.register_buffer("angles", torch.randn(N, 2))

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        return self.linear(x).sum() + self.marked(self, x, *others).erf().sum()


def facts(marked: Callable[..., Tensor], *others: Tensor) -> tuple[bool, bool]:
    """Whether the marked value is constant, and whether it is a table."""
    gm = normalize(*capture(Model(marked), torch.randn(2, N, CHANNELS), *others))
    inputs = Inputs(gm.graph)
    value: Any = gm.graph.find_nodes(op="call_function", target=aten.erf.default)[0].args[0]
    return inputs.constant(value), inputs.is_table(value)


IDS = torch.arange(N * 2).view(N, 2).float()
MASK = torch.ones(2, N)


@pytest.mark.parametrize(
    "marked",
    [
        lambda m, x: m.table,
        lambda m, x: m.table.cos() * 2,
        lambda m, x: m.angles @ torch.ones(2, 3),
        lambda m, x: torch.arange(N) * 1.0,
        lambda m, x: F.layer_norm(m.table, (CHANNELS,)),
        lambda m, x: m.linear(m.table),
        lambda m, x: torch.outer(torch.arange(N).float(), torch.ones(3)).cos(),
    ],
)
def test_parameters_and_constants_are_constant(marked: Callable[..., Tensor]) -> None:
    assert facts(marked) == (True, True)


@pytest.mark.parametrize(
    "marked",
    [
        lambda m, x, ids: ids.cos(),
        lambda m, x, ids: torch.outer(ids[:, 0], torch.arange(3).float()).sin(),
        lambda m, x, ids: ids[:, :1] * m.table,
        lambda m, x, ids: torch.stack((ids.cos(), ids.sin()), -1).flatten(-2),
        lambda m, x, ids: (ids > 3).float() * -1e4,
    ],
)
def test_position_ids_become_tables(marked: Callable[..., Tensor]) -> None:
    assert facts(marked, IDS) == (False, True)


@pytest.mark.parametrize(
    "marked",
    [
        lambda m, x: x * 1.5,
        lambda m, x: m.linear(x),
        lambda m, x: m.table * x.mean(),
        lambda m, x: (x.mean(-1) > 0).float(),
        lambda m, x: m.linear(x).detach() * 0,
    ],
)
def test_activations_are_no_tables(marked: Callable[..., Tensor]) -> None:
    assert facts(marked) == (False, False)


@pytest.mark.parametrize(
    "marked",
    [
        lambda m, x, other: m.linear(other),
        lambda m, x, other: other + m.linear(other).sum(),
        lambda m, x, other: F.layer_norm(other, (CHANNELS,)),
        lambda m, x, other: F.conv1d(other.transpose(1, 2), torch.ones(1, CHANNELS, 1)),
        lambda m, x, other: F.group_norm(other, 2),
        lambda m, x, other: other @ m.linear.weight,
    ],
)
def test_what_a_learned_operation_reads_is_an_activation(marked: Callable[..., Tensor]) -> None:
    assert facts(marked, torch.randn(2, N, CHANNELS)) == (False, False)


def test_an_embedding_of_indices_is_an_activation() -> None:
    marked = lambda m, x, ids: F.embedding(ids, m.table)  # noqa: E731
    assert facts(marked, torch.zeros(2, N, dtype=torch.int64)) == (False, False)


def test_an_attention_mask_is_no_activation_but_queries_are() -> None:
    def marked(m: Model, x: Tensor, mask: Tensor, query: Tensor) -> Tensor:
        key = m.linear(x)
        attended = F.scaled_dot_product_attention(query, key, key, attn_mask=mask[:, None] > 0)
        return mask + attended.sum() * 0

    def only_mask(m: Model, x: Tensor, mask: Tensor, query: Tensor) -> Tensor:
        return mask * 2 + 0 * len(marked(m, x, mask, query))

    query = torch.randn(2, N, CHANNELS)
    assert facts(only_mask, MASK, query) == (False, True)
    assert facts(marked, MASK, query) == (False, False)


def test_a_projection_by_einsum_is_an_activation() -> None:
    marked = lambda m, x, o: torch.einsum("bnc,dc->bnd", o, m.linear.weight)  # noqa: E731
    assert facts(marked, torch.randn(2, N, CHANNELS)) == (False, False)


def test_random_numbers_are_not_constant() -> None:
    assert facts(lambda m, x: torch.randn(N, CHANNELS)) == (False, False)


def test_static_placeholders_are_parameters_and_buffers() -> None:
    gm, inputs = capture(Model(lambda m, x: m.table + m.angles.sum()), torch.randn(2, N, CHANNELS))
    static = [is_static(node) for node in gm.graph.find_nodes(op="placeholder")]
    mine = [value.shape == (2, N, CHANNELS) for value in inputs]
    assert static == [not argument for argument in mine]


def test_a_door_may_mark_static_inputs() -> None:
    node = fx.Graph().placeholder("weight")
    assert not is_static(node)
    node.meta["toma_static"] = True
    assert is_static(node)


def test_two_inputs_are_told_apart() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(CHANNELS, CHANNELS)

        def forward(self, x: Tensor, ids: Tensor) -> Tensor:
            return self.linear(x) * ids.cos()

    gm, values = capture(Two(), torch.randn(2, N, CHANNELS), torch.randn(N, 1))
    normal = normalize(gm, values)
    inputs = Inputs(normal.graph)
    placeholders = {
        tuple(p.meta["val"].shape): p for p in normal.graph.find_nodes(op="placeholder")
    }
    x, ids = placeholders[2, N, CHANNELS], placeholders[N, 1]
    weight = placeholders[CHANNELS, CHANNELS]
    assert inputs.is_feature(x)
    assert not inputs.is_feature(ids)
    assert (inputs.varying(x), inputs.varying(ids), inputs.varying(weight)) == (True, True, False)
    cosine = normal.graph.find_nodes(op="call_function", target=aten.cos.default)[0]
    assert inputs.depends_only_on(cosine, ids)
    assert not inputs.depends_only_on(cosine, x)
