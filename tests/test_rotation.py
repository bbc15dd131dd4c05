"""Which tokens are computed, and who hears of whom: tensors against the specification."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from toma_fx import recall, rotation
from toma_fx.refresh import NEIGHBOURS, Rotation
from toma_fx.share import Share

GRIDS = st.one_of(
    st.tuples(st.integers(1, 9), st.integers(2, 9)),
    st.tuples(st.integers(1, 3), st.integers(2, 5), st.integers(2, 5)),
)
SHARES = st.integers(2, 8).flatmap(lambda q: st.builds(Share, st.integers(1, q - 1), st.just(q)))


def dense(near: Tensor, weights: Tensor, rows: Tensor) -> Tensor:
    """`[N, N]` weights over tokens, from places among the computed ones."""
    tokens = len(near)
    found = torch.zeros(tokens, tokens)
    for place in range(NEIGHBOURS):
        found[torch.arange(tokens), rows[near[:, place]]] += weights[:, place]
    return found


def tables(cells: Tensor, step: int, share: Share) -> tuple[Tensor, ...]:
    first = torch.tensor(step * share.computed % share.classes)
    return recall.tables(cells, first, share, *rotation.stencil(share, cells.shape[1]))


@given(GRIDS, SHARES, st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_tables_are_those_of_the_specification(
    grid: tuple[int, ...], share: Share, step: int
) -> None:
    cells = rotation.grid_cells(grid)
    wanted = Rotation(tuple(map(tuple, cells.tolist())), share)
    rows, classes, near, weights = tables(cells, step, share)
    assert rows.tolist() == wanted.rows(step)
    assert classes.tolist() == wanted.class_of()
    torch.testing.assert_close(dense(near, weights, rows), wanted.weights(step))


@given(GRIDS, SHARES)
@settings(max_examples=30, deadline=None)
def test_every_token_is_computed_as_often_as_any_other(grid: tuple[int, ...], share: Share) -> None:
    cells = rotation.grid_cells(grid)
    assume(share.length(len(cells)) * (share.classes - 1) < len(cells))  # no class is empty
    count = torch.zeros(len(cells))
    for step in range(share.classes):
        count[tables(cells, step, share)[0].unique()] += 1
    assert count.tolist() == [share.computed] * len(cells)


@given(GRIDS, SHARES, st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_weights_add_up_and_fall_on_computed_tokens(
    grid: tuple[int, ...], share: Share, step: int
) -> None:
    cells = rotation.grid_cells(grid)
    rows, _, near, weights = tables(cells, step, share)
    spread = dense(near, weights, rows)
    torch.testing.assert_close(spread.sum(1), torch.ones(len(cells)))
    own = torch.zeros(len(cells), dtype=torch.bool)
    own[rows] = True
    assert torch.equal(spread[own], torch.eye(len(cells))[own])


@given(st.permutations(range(30)), SHARES, st.sampled_from([torch.float32, torch.bfloat16]))
@settings(max_examples=20, deadline=None)
def test_positions_that_are_data_may_come_in_any_order(
    order: list[int], share: Share, dtype: torch.dtype
) -> None:
    ids = torch.cat((torch.zeros(30, 1), rotation.grid_cells((5, 6))), 1)[order].to(dtype) + 3
    first = torch.tensor(0)
    around = rotation.stencil(share, 3)
    rows, _, near, weights = recall.tables_of_positions(ids, first, share, *around)
    wanted = Rotation(tuple(map(tuple, (ids - 3).long().tolist())), share)
    assert rows.tolist() == wanted.rows(0)
    torch.testing.assert_close(dense(near, weights, rows), wanted.weights(0))


def test_positions_that_are_no_grid_do_no_harm() -> None:
    """Two tokens on one place, places far apart, places in between: weights still add up."""
    ids = torch.tensor([[0, 0.4, 9], [0, 0.4, 9], [0, 700, 3], [0, 5, 5], [0, 5, 6], [2, 5, 6]])
    share = Share(1, 2)
    found = recall.tables_of_positions(ids, torch.tensor(1), share, *rotation.stencil(share, 3))
    assert sorted(found[0].tolist()) == [3, 4, 5]
    torch.testing.assert_close(found[3].sum(1), torch.ones(6))
    assert int(found[2].max()) < 3


@pytest.mark.parametrize(
    ("share", "picture"),
    [
        (Share(1, 2), ["#.#.", ".#.#", "#.#.", ".#.#"]),
        (Share(1, 3), ["#..#", "..#.", ".#..", "#..#"]),
        (Share(1, 4), ["#...", "..#.", "#...", "..#."]),
        (Share(3, 4), ["###.", "#.##", "###.", "#.##"]),
    ],
)
def test_shares_as_one_sees_them(share: Share, picture: list[str]) -> None:
    rows = tables(rotation.grid_cells((4, 4)), 0, share)[0].tolist()
    text = "".join("#" if token in rows else "." for token in range(16))
    assert [text[start : start + 4] for start in range(0, 16, 4)] == picture


def test_half_hears_of_the_four_tokens_around() -> None:
    rows, _, near, weights = tables(rotation.grid_cells((4, 4)), 0, Share(1, 2))
    assert sorted(rows[near[6]].tolist()) == [2, 5, 7, 10]
    assert weights[6].tolist() == [0.25] * 4
    assert sorted(zip(weights[1].tolist(), rows[near[1]].tolist(), strict=True))[1:] == [
        (pytest.approx(1 / 3), token) for token in (0, 2, 5)
    ]
