"""Token orders: permutations that make each run of tokens one compact window of the grid.

With windows as data, a non-square, odd or three-dimensional grid needs no code path of its own:
merging works on `hidden[:, order]`, unmerging ends with the inverse permutation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

_CURVE_BITS = 18  # grids up to 262,144 tokens a side, read three bits at a time


def tile_sides(grid: Sequence[int], window: int) -> tuple[int, int]:
    """Height and width of a tile, clamped to the last two sides of the grid."""
    return min(window, grid[-2]), min(window, grid[-1])


def divides(grid: Sequence[int], window: int) -> bool:
    """Whether tiles cover the grid exactly."""
    height, width = tile_sides(grid, window)
    return grid[-2] % height == 0 and grid[-1] % width == 0


def tile_order(grid: Sequence[int], window: int) -> Tensor:
    """`[N]` int64: the tokens of a raster-ordered grid, tile by tile.

    Args:
        grid: `(height, width)` or `(frames, height, width)`; tiles divide the last two sides.
        window: side of a tile.
    """
    height, width = tile_sides(grid, window)
    index = torch.arange(math.prod(grid)).view(
        -1, grid[-2] // height, height, grid[-1] // width, width
    )
    return index.permute(0, 1, 3, 2, 4).reshape(-1)


def hilbert_order(grid: Sequence[int]) -> Tensor:
    """`[N]` int64: the tokens of a raster-ordered grid along a generalised Hilbert curve.

    Works for any two sides; frames of a three-dimensional grid follow one another.
    """
    height, width = grid[-2:]
    longer_across = width >= height
    across = (width, 0) if longer_across else (0, height)
    down = (0, height) if longer_across else (width, 0)
    frame = torch.tensor([y * width + x for x, y in _curve((0, 0), across, down)])
    frames = torch.arange(math.prod(grid[:-2])) * (height * width)
    return (frames.unsqueeze(1) + frame).reshape(-1)


def _curve(
    at: tuple[int, int], major: tuple[int, int], minor: tuple[int, int]
) -> Iterator[tuple[int, int]]:
    """Cells of the rectangle spanned from `at`, entering at `at`, leaving at the end of `major`.

    A rectangle far longer than high is halved along its length. Otherwise it becomes a step up
    in half of the height, a run along the whole length, and a step down: each a rectangle again.
    """
    length, height = abs(sum(major)), abs(sum(minor))
    along, up = _unit(major), _unit(minor)
    if height == 1:
        yield from (_move(at, along, step) for step in range(length))
        return
    if length == 1:
        yield from (_move(at, up, step) for step in range(height))
        return
    half_length, half_height = length // 2, height // 2
    if 2 * length > 3 * height:
        half_length += half_length % 2 and length > 2  # even steps keep the ends adjacent
        yield from _curve(at, _scale(along, half_length), minor)
        yield from _curve(_move(at, along, half_length), _scale(along, length - half_length), minor)
        return
    half_height += half_height % 2 and height > 2
    yield from _curve(at, _scale(up, half_height), _scale(along, half_length))
    yield from _curve(_move(at, up, half_height), major, _scale(up, height - half_height))
    corner = _move(_move(at, along, length - 1), up, half_height - 1)
    yield from _curve(corner, _scale(up, -half_height), _scale(along, half_length - length))


def _unit(span: tuple[int, int]) -> tuple[int, int]:
    return (span[0] > 0) - (span[0] < 0), (span[1] > 0) - (span[1] < 0)


def _scale(unit: tuple[int, int], factor: int) -> tuple[int, int]:
    return unit[0] * factor, unit[1] * factor


def _move(at: tuple[int, int], unit: tuple[int, int], steps: int) -> tuple[int, int]:
    return at[0] + unit[0] * steps, at[1] + unit[1] * steps


def order_from_positions(positions: Tensor, window: int, order: str, curve: Tensor) -> Tensor:
    """`[N]` int64 order of tokens whose grid is data (`img_ids`), computed on their device.

    Sorting keys need neither the grid's sides nor a device-to-host copy. With a window that is a
    power of two, Hilbert keys walk each aligned tile in one run, so that they serve `"tile"` too;
    other windows sort by tile and keep the given sequence within it.

    Args:
        positions: `[N, k]` coordinates, `2 ≤ k ≤ 4`, whole numbers in any dtype. Two
            columns are `(y, x)`; with more, columns 1 and 2 are, and the others vary slowest.
        window: side of a tile.
        order: `"tile"`, `"hilbert"`, or `"cell"`: tiles that keep the given sequence inside.
        curve: `curve_table()` on the same device.
    """
    cells = (positions - positions.amin(0, keepdim=True)).round().long()
    first = 0 if cells.shape[1] == 2 else 1
    y, x = cells[:, first], cells[:, first + 1]
    if order == "hilbert" or (order == "tile" and window & (window - 1) == 0):
        keys = _hilbert_keys(y, x, curve)
    else:  # a stable sort keeps the raster within a tile
        keys = (y // window << _CURVE_BITS) + x // window
    slowest = torch.zeros_like(keys)
    for column in range(cells.shape[1]):
        if column not in (first, first + 1):
            slowest = (slowest << 13) + cells[:, column].clamp(max=(1 << 13) - 1)
    return torch.argsort((slowest << 2 * _CURVE_BITS) + keys, stable=True)


def curve_table() -> Tensor:
    """`[4 · 64]` int64: the Hilbert curve as a machine that reads three bits of y and x at once.

    Entry `64·state + 8·y + x` is `4·key + next state`. A state says whether the curve is swapped
    (1) and turned by 180° (2) in the current square. Bit by bit the same takes sixteen dependent
    steps, which Inductor inlines into one expression that takes half a minute to compile.
    """
    entries = []
    for start in range(4):
        for cell in range(64):
            state, key = start, 0
            for bit in (2, 1, 0):
                lower, right = cell >> 3 + bit & 1, cell >> bit & 1
                lower, right = lower ^ state >> 1, right ^ state >> 1
                if state & 1:
                    lower, right = right, lower
                key = 4 * key + (3 * right if not lower else 2 - (not right))
                state ^= (not lower) + 2 * (right and not lower)
            entries.append(4 * key + state)
    return torch.tensor(entries)


def _hilbert_keys(y: Tensor, x: Tensor, curve: Tensor) -> Tensor:
    """Distance along a Hilbert curve over a square of side 2¹⁸, elementwise."""
    keys = state = torch.zeros_like(x)
    for shift in range(_CURVE_BITS - 3, -1, -3):
        entry = curve[state * 64 + (y >> shift & 7) * 8 + (x >> shift & 7)]
        keys, state = keys * 64 + (entry >> 2), entry & 3
    return keys
