"""Token orders: permutations whose runs are compact windows of the grid."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from toma_fx.order import (
    curve_table,
    divides,
    hilbert_order,
    order_from_positions,
    tile_order,
    tile_sides,
)

PROPERTY = settings(deadline=None, max_examples=80, derandomize=True)
SIDES = st.integers(1, 40)
GRIDS = st.tuples(SIDES, SIDES) | st.tuples(
    st.integers(1, 4), st.integers(1, 12), st.integers(1, 12)
)


def is_permutation(order: Tensor, size: int) -> bool:
    return order.dtype == torch.int64 and torch.equal(order.sort().values, torch.arange(size))


def positions(grid: tuple[int, ...], columns: int | None = None) -> Tensor:
    """`[N, k]` coordinates in raster order, with columns of zeros in front."""
    axes = torch.meshgrid(*(torch.arange(side) for side in grid), indexing="ij")
    found = torch.stack([axis.flatten() for axis in axes], -1)
    ahead = (columns or len(grid)) - len(grid)
    return torch.cat((found.new_zeros(len(found), ahead), found), -1)


def coordinates(order: Tensor, width: int) -> tuple[Tensor, Tensor]:
    return order // width, order % width


def windows(order: Tensor, size: int) -> set[frozenset[int]]:
    return {frozenset(run.tolist()) for run in order.split(size)}


@PROPERTY
@given(GRIDS)
def test_hilbert_visits_every_token_once(grid: tuple[int, ...]) -> None:
    assert is_permutation(hilbert_order(grid), math.prod(grid))


@PROPERTY
@given(SIDES, SIDES)
def test_hilbert_moves_to_a_neighbour(height: int, width: int) -> None:
    """At most one diagonal step, where both sides are odd or the longer one is."""
    y, x = coordinates(hilbert_order((height, width)), width)
    jumps = torch.maximum(y.diff().abs(), x.diff().abs())
    assert int(jumps.max()) <= 1 if len(jumps) else True
    diagonal = (y.diff().abs() + x.diff().abs()) > 1
    assert int(diagonal.sum()) <= 1


@PROPERTY
@given(st.integers(2, 40), st.integers(2, 40), st.integers(2, 8))
def test_hilbert_windows_are_compact(height: int, width: int, side: int) -> None:
    """A run of `side²` tokens spans little more than a square of that area."""
    order = hilbert_order((height, width))
    for run in order.split(side * side):
        y, x = coordinates(run, width)
        assert int(y.max() - y.min()) < 4 * side
        assert int(x.max() - x.min()) < 4 * side


@PROPERTY
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6), st.integers(1, 3))
def test_tiles_are_squares(rows: int, columns: int, window: int, frames: int) -> None:
    grid = (frames, rows * window, columns * window)
    order = tile_order(grid, window)
    assert divides(grid, window)
    assert is_permutation(order, math.prod(grid))
    for run in order.split(window * window):
        frame = run // (grid[1] * grid[2])
        assert frame.unique().numel() == 1
        y, x = coordinates(run % (grid[1] * grid[2]), grid[2])
        assert int(y.max() - y.min()) == int(x.max() - x.min()) == window - 1
        assert int(y.min()) % window == int(x.min()) % window == 0


@PROPERTY
@given(SIDES, SIDES, st.integers(1, 50))
def test_tiles_are_clamped_to_the_grid(height: int, width: int, window: int) -> None:
    sides = tile_sides((height, width), window)
    assert sides == (min(window, height), min(window, width))
    assert divides((height, width), window) == (height % sides[0] == 0 and width % sides[1] == 0)
    if divides((height, width), window):
        assert is_permutation(tile_order((height, width), window), height * width)


@PROPERTY
@given(GRIDS, st.integers(1, 9), st.sampled_from(["tile", "hilbert"]))
def test_orders_from_positions_are_permutations(
    grid: tuple[int, ...], window: int, order: str
) -> None:
    found = order_from_positions(positions(grid), window, order, curve_table())
    assert is_permutation(found, math.prod(grid))


@PROPERTY
@given(
    st.integers(1, 5), st.integers(1, 5), st.integers(1, 9), st.integers(2, 4), st.integers(-3, 9)
)
def test_tiles_from_positions_are_the_tiles_of_the_grid(
    rows: int, columns: int, window: int, width: int, offset: int
) -> None:
    """Whatever the number of columns, the offset, the dtype and the given sequence."""
    grid = (rows * window, columns * window)
    ids = positions(grid, width)
    if width > 2:
        ids = ids[:, [0, *range(width - 2, width), *range(1, width - 2)]]  # y, x are columns 1, 2
    shuffled = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))
    for dtype in (torch.int64, torch.float32, torch.float64):
        found = order_from_positions(
            (ids[shuffled] + offset).to(dtype), window, "tile", curve_table()
        )
        assert windows(shuffled[found], window**2) == windows(tile_order(grid, window), window**2)


def test_frames_vary_slowest() -> None:
    grid = (3, 4, 4)
    found = order_from_positions(positions(grid), 2, "tile", curve_table())
    assert torch.equal(found // 16, torch.arange(3).repeat_interleave(16))
    assert windows(found, 4) == windows(tile_order(grid, 2), 4)


def test_hilbert_keys_step_to_neighbours() -> None:
    found = order_from_positions(positions((16, 16)), 8, "hilbert", curve_table())
    y, x = coordinates(found, 16)
    assert torch.equal(y.diff().abs() + x.diff().abs(), torch.ones(255, dtype=torch.int64))


def test_far_away_positions_keep_their_order() -> None:
    """Coordinates up to the curve's 2¹⁸ cells a side do not overflow into one another."""
    side = 2**18 - 1
    ids = torch.tensor([[0, 0], [0, side], [side, side], [side, 0]])
    found = order_from_positions(ids, 8, "hilbert", curve_table())
    y, x = ids[found].unbind(-1)
    assert [int(y[0]), int(x[0])] == [0, 0]
    steps = (y.diff() != 0).long() + (x.diff() != 0).long()
    assert steps.tolist() == [1, 1, 1]


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_the_curve_fills_each_aligned_square_in_one_run(bits: int) -> None:
    """So that one curve serves windows of any power of two."""
    found = order_from_positions(positions((16, 16)), 1, "hilbert", curve_table())
    side = 2**bits
    assert windows(found, side**2) == windows(tile_order((16, 16), side), side**2)


VOLUMES = st.tuples(*(st.integers(1, 9) for _ in range(3)))


@PROPERTY
@given(VOLUMES)
def test_a_curve_through_frames_steps_to_neighbours(grid: tuple[int, int, int]) -> None:
    order = hilbert_order(grid, frames=True)
    assert is_permutation(order, math.prod(grid))
    if min(grid) > 1:
        frame, y, x = order // (grid[1] * grid[2]), order // grid[2] % grid[1], order % grid[2]
        jumps = torch.stack([side.diff().abs() for side in (frame, y, x)])
        assert int(jumps.max()) <= 1


@PROPERTY
@given(VOLUMES, st.integers(1, 3))
def test_volume_windows_are_compact(grid: tuple[int, int, int], side: int) -> None:
    """A run of `side³` tokens spans little more than a cube of that volume."""
    order = hilbert_order(grid, frames=True)
    for run in order.split(side**3):
        places = (run // (grid[1] * grid[2]), run // grid[2] % grid[1], run % grid[2])
        if min(grid) > 1:
            assert all(int(p.max() - p.min()) < 4 * side for p in places)


@PROPERTY
@given(st.tuples(*(st.integers(1, 3) for _ in range(3))), st.tuples(*(st.integers(1, 3),) * 3))
def test_tiles_of_several_frames(tiles: tuple[int, ...], window: tuple[int, int, int]) -> None:
    grid = tuple(n * side for n, side in zip(tiles, window, strict=True))
    order = tile_order(grid, window)
    assert divides(grid, window)
    assert tile_sides(grid, window) == window
    assert is_permutation(order, math.prod(grid))
    for run in order.split(math.prod(window)):
        places = (run // (grid[1] * grid[2]), run // grid[2] % grid[1], run % grid[2])
        for place, side in zip(places, window, strict=True):
            assert int(place.max() - place.min()) == side - 1
            assert int(place.min()) % side == 0


def test_one_frame_a_window_is_the_square_window() -> None:
    assert torch.equal(tile_order((3, 4, 8), (1, 4, 4)), tile_order((3, 4, 8), 4))
