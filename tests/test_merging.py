"""Merge and unmerge as plain tensor operations, against the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from toma_fx import reference
from toma_fx.merging import (
    destination_rows,
    gather_rows,
    merge_tokens,
    row_index,
    slots_from_sequence,
    unmerge_tokens,
)
from toma_fx.windows import cut

B, C = 2, 5


class Setup:
    """Tokens, an order with pads, and the matrices of a plan."""

    def __init__(self, tokens: int, ahead: int, after: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.windows = cut(tokens, 4, 0.5)
        self.hidden = torch.randn(B, ahead + tokens + after, C, generator=generator)
        sequence = torch.randperm(tokens, generator=generator)
        slots = torch.tensor(self.windows.rank_slots())
        self.order, self.inverse = slots_from_sequence(
            sequence, torch.tensor(self.windows.slot_ranks()), slots
        )
        n, d, count = self.windows.size, self.windows.destinations, self.windows.count
        self.picture = self.hidden[:, ahead : ahead + tokens]
        self.cells = self.picture[:, self.order].reshape(-1, n, C)
        valid = torch.ones(B, count, n, dtype=torch.bool)
        valid[:, count - self.windows.pads :, -1:] = False
        self.valid = valid[0].flatten()
        valid = valid.view(-1, n)
        self.destinations = reference.select_destinations(self.cells, d, valid).view(B, count, d)
        picks = self.destinations.view(-1, d)
        self.weights = reference.assignment(self.cells, picks, 0.1, valid)


CASES = pytest.mark.parametrize(
    ("tokens", "ahead", "after"), [(12, 0, 0), (13, 0, 0), (12, 3, 0), (11, 0, 2), (13, 4, 2)]
)


@CASES
def test_merging_and_unmerging_are_the_reference(tokens: int, ahead: int, after: int) -> None:
    s = Setup(tokens, ahead, after)
    merged = merge_tokens(s.hidden, reference.merge_matrix(s.weights), s.order, ahead, tokens)
    assert merged.shape == (B, ahead + s.windows.merged + after, C)
    middle = merged[:, ahead : ahead + s.windows.merged]
    assert torch.allclose(
        middle.reshape(-1, s.windows.destinations, C), reference.merge(s.cells, s.weights)
    )
    restored = unmerge_tokens(
        merged, reference.unmerge_matrix(s.weights), s.inverse, ahead, s.windows.merged
    )
    assert restored.shape == s.hidden.shape
    slots = reference.unmerge(reference.merge(s.cells, s.weights), s.weights).reshape(B, -1, C)
    real = s.valid
    picture = restored[:, ahead : ahead + tokens]
    assert torch.allclose(picture[:, s.order[real]], slots[:, real])
    assert torch.equal(restored[:, :ahead], s.hidden[:, :ahead])
    assert torch.equal(restored[:, ahead + tokens :], s.hidden[:, ahead + tokens :])


@CASES
def test_each_token_returns_to_its_place(tokens: int, ahead: int, after: int) -> None:
    """Weights of one keep every slot: merging, then unmerging, is then nothing at all."""
    s = Setup(tokens, ahead, after)
    one = torch.eye(s.windows.size).expand(B * s.windows.count, -1, -1)
    merged = merge_tokens(s.hidden, one, s.order, ahead, tokens)
    slots = s.windows.count * s.windows.size
    assert torch.equal(unmerge_tokens(merged, one, s.inverse, ahead, slots), s.hidden)


def test_without_an_order_slots_are_tokens() -> None:
    s = Setup(12, 0, 0)
    merging = reference.merge_matrix(s.weights)
    natural = torch.arange(12)
    assert torch.equal(
        merge_tokens(s.hidden, merging, None, 0, 12),
        merge_tokens(s.hidden, merging, natural, 0, 12),
    )
    merged = merge_tokens(s.hidden, merging, None, 0, 12)
    restore = s.weights.transpose(1, 2)
    assert torch.equal(
        unmerge_tokens(merged, restore, None, 0, s.windows.merged),
        unmerge_tokens(merged, restore, natural, 0, s.windows.merged),
    )


def test_order_and_inverse_undo_each_other() -> None:
    for tokens in (12, 13, 15):
        s = Setup(tokens, 0, 0)
        assert torch.equal(s.order[s.inverse], torch.arange(tokens))


@CASES
def test_rows_are_the_tokens_that_stay(tokens: int, ahead: int, after: int) -> None:
    s = Setup(tokens, ahead, after)
    rows = destination_rows(s.destinations, s.order, s.windows.size)
    assert rows.shape == (B, s.windows.merged)
    for item in range(B):
        assert rows[item].unique().numel() == s.windows.merged
    kept = s.picture.take_along_dim(rows.unsqueeze(-1), 1)
    wanted = s.cells.take_along_dim(s.destinations.view(-1, s.windows.destinations, 1), 1)
    assert torch.equal(kept, wanted.reshape(B, -1, C))
    index = row_index(rows, ahead, after, tokens)
    text = s.hidden.take_along_dim(index.unsqueeze(-1), 1)
    assert torch.equal(text[:, :ahead], s.hidden[:, :ahead])
    assert torch.equal(text[:, ahead : ahead + s.windows.merged], kept)
    assert torch.equal(text[:, ahead + s.windows.merged :], s.hidden[:, ahead + tokens :])


@pytest.mark.parametrize(
    ("sizes", "axis", "batch", "leading"),
    [
        ((7, C), 1, 0, 1),
        ((1, 7, C), 1, 0, 0),
        ((B, 7, C), 1, 0, 0),
        ((7,), 2, 0, 2),
        ((B, 3, 7, C), 2, 0, 0),
        ((1, 1, 7, 7), 3, 0, 0),
        pytest.param((3, 7, B), 1, 2, 0),
        pytest.param((3, 7, 1), 1, 2, 0),
    ],
)
def test_each_item_reads_its_own_rows(
    sizes: tuple[int, ...], axis: int, batch: int, leading: int
) -> None:
    table = torch.randn(sizes)
    index = torch.tensor([[0, 3, 5], [6, 1, 1]])
    got = gather_rows(table, index, axis, batch, leading)
    whole = table[(None,) * leading]
    for item in range(B):
        own: Tensor = whole.narrow(batch, item if whole.shape[batch] > 1 else 0, 1)
        assert torch.equal(got.narrow(batch, item, 1), own.index_select(axis, index[item]))


def test_a_single_item_needs_no_batch_axis() -> None:
    table = torch.randn(7, C)
    assert torch.equal(gather_rows(table, torch.tensor([[2, 4]]), 0, None, 0), table[[2, 4]])
