"""Token orders: permutations that make each run of tokens one compact window of the grid.

With windows as data, a non-square, odd or three-dimensional grid needs no code path of its own:
merging works on `hidden[:, order]`, unmerging ends with the inverse permutation.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

_CURVE_BITS = 18  # grids up to 262,144 tokens a side, read three bits at a time

Vector = tuple[int, ...]
Window = int | tuple[int, int, int]
"""Side of a square window, or frames, height and width of one that holds several frames."""


def tile_sides(grid: Sequence[int], window: Window) -> tuple[int, ...]:
    """Height and width of a tile, or frames, height and width, clamped to the grid's sides."""
    if isinstance(window, int):
        return min(window, grid[-2]), min(window, grid[-1])
    sides = (*(1,) * (3 - len(grid)), *grid)
    return tuple(min(side, size) for side, size in zip(window, sides, strict=True))


def divides(grid: Sequence[int], window: Window) -> bool:
    """Whether tiles cover the grid exactly."""
    sides = tile_sides(grid, window)
    return all(size % side == 0 for size, side in zip(grid[::-1], sides[::-1], strict=False))


def tile_order(grid: Sequence[int], window: Window) -> Tensor:
    """`[N]` int64: the tokens of a raster-ordered grid, tile by tile.

    Args:
        grid: `(height, width)` or `(frames, height, width)`; tiles divide its sides.
        window: side of a tile in one frame, or frames, height and width.
    """
    *frames, height, width = tile_sides(grid, window)
    deep = frames[0] if frames else 1
    index = torch.arange(math.prod(grid)).view(
        -1, deep, grid[-2] // height, height, grid[-1] // width, width
    )
    return index.permute(0, 2, 4, 1, 3, 5).reshape(-1)


def hilbert_order(grid: Sequence[int], *, frames: bool = False) -> Tensor:
    """`[N]` int64: the tokens of a raster-ordered grid along a generalised Hilbert curve.

    Works for any sides. Frames of a three-dimensional grid follow one another; with `frames` the
    curve runs through them as well, so that a run of tokens is compact in time too.
    """
    if frames and len(grid) == 3 and min(grid) > 1:
        return torch.tensor(_hilbert_volume(tuple(grid)))
    height, width = grid[-2:]
    longer_across = width >= height
    across = (width, 0) if longer_across else (0, height)
    down = (0, height) if longer_across else (width, 0)
    frame = torch.tensor([y * width + x for x, y in _curve((0, 0), across, down)])
    starts = torch.arange(math.prod(grid[:-2])) * (height * width)
    return (starts.unsqueeze(1) + frame).reshape(-1)


@functools.lru_cache(maxsize=8)
def _hilbert_volume(grid: tuple[int, ...]) -> list[int]:
    """The tokens of `(frames, height, width)` along a curve that begins along the longest side."""
    spans = [tuple(size * (axis == at) for axis in range(3)) for at, size in enumerate(grid)]
    first, second, third = sorted(spans, key=sum, reverse=True)
    cells = _volume((0, 0, 0), first, second, third)
    return [(t * grid[1] + y) * grid[2] + x for t, y, x in cells]


def _curve(at: Vector, major: Vector, minor: Vector) -> Iterator[Vector]:
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


def _volume(at: Vector, major: Vector, minor: Vector, third: Vector) -> Iterator[Vector]:
    """Cells of the cuboid spanned from `at`, entering at `at`, leaving at the end of `major`.

    As in the plane: far longer than high and deep, it is halved along its length; where one of
    the other sides is short, it is a step up, a run and a step down in the plane of the two
    longer ones; else five parts, that go round all eight corners.
    """
    length, height, depth = (abs(sum(span)) for span in (major, minor, third))
    along, up, deep = _unit(major), _unit(minor), _unit(third)
    if (height == 1) + (depth == 1) + (length == 1) >= 2:
        steps = max(length, height, depth)
        way = along if length == steps else up if height == steps else deep
        yield from (_move(at, way, step) for step in range(steps))
        return
    a, b, c = (_half(size) for size in (length, height, depth))
    ahead, above, behind = _scale(along, a), _scale(up, b), _scale(deep, c)
    rest = _scale(along, length - a)
    if 2 * length > 3 * height and 2 * length > 3 * depth:
        yield from _volume(at, ahead, minor, third)
        yield from _volume(_move(at, along, a), rest, minor, third)
    elif 3 * height > 4 * depth:
        yield from _volume(at, above, third, ahead)
        yield from _volume(_move(at, up, b), major, _scale(up, height - b), third)
        corner = _move(_move(at, along, length - 1), up, b - 1)
        yield from _volume(corner, _scale(above, -1), third, _scale(rest, -1))
    elif 3 * depth > 4 * height:
        yield from _volume(at, behind, ahead, minor)
        yield from _volume(_move(at, deep, c), major, minor, _scale(deep, depth - c))
        corner = _move(_move(at, along, length - 1), deep, c - 1)
        yield from _volume(corner, _scale(behind, -1), _scale(rest, -1), minor)
    else:
        over = _scale(up, height - b)
        yield from _volume(at, above, behind, ahead)
        yield from _volume(_move(at, up, b), third, ahead, over)
        corner = _move(_move(at, up, b - 1), deep, depth - 1)
        yield from _volume(corner, major, _scale(above, -1), _scale(deep, c - depth))
        corner = _move(_move(_move(at, along, length - 1), up, b), deep, depth - 1)
        yield from _volume(corner, _scale(third, -1), _scale(rest, -1), over)
        corner = _move(_move(at, along, length - 1), up, b - 1)
        yield from _volume(corner, _scale(above, -1), behind, _scale(rest, -1))


def _half(size: int) -> int:
    """About half; even where that leaves both parts something, so that their ends are adjacent."""
    return size // 2 + (size // 2 % 2 and size > 2)


def _unit(span: Vector) -> Vector:
    return tuple((part > 0) - (part < 0) for part in span)


def _scale(span: Vector, factor: int) -> Vector:
    return tuple(part * factor for part in span)


def _move(at: Vector, unit: Vector, steps: int) -> Vector:
    return tuple(place + step * steps for place, step in zip(at, unit, strict=True))


def order_from_positions(positions: Tensor, window: Window, order: str, curve: Tensor) -> Tensor:
    """`[N]` int64 order of tokens whose grid is data (`img_ids`), computed on their device.

    Sorting keys need neither the grid's sides nor a device-to-host copy. With a window that is a
    power of two, Hilbert keys walk each aligned tile in one run, so that they serve `"tile"` too;
    other windows sort by tile and keep the given sequence within it.

    Args:
        positions: `[N, k]` coordinates, `2 ≤ k ≤ 4`, whole numbers in any dtype. Two
            columns are `(y, x)`; with more, columns 1 and 2 are, and the others vary slowest.
        window: side of a tile; or frames, height and width, and then column 0 counts frames.
        order: `"tile"`, `"hilbert"`, or `"cell"`: tiles that keep the given sequence inside.
        curve: `curve_table()` on the same device.
    """
    cells = (positions - positions.amin(0, keepdim=True)).round().long()
    if not isinstance(window, int):
        return _volumes_from_positions(cells, window)
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


def _volumes_from_positions(cells: Tensor, window: tuple[int, int, int]) -> Tensor:
    """Sorted by the tile that a token lies in; the given sequence is kept within it."""
    frame = cells[:, :1] if cells.shape[1] > 2 else torch.zeros_like(cells[:, :1])
    first = 0 if cells.shape[1] == 2 else 1
    places = torch.cat((frame, cells[:, first : first + 2]), 1)
    keys = torch.zeros_like(places[:, 0])
    for column in range(first + 2, cells.shape[1]):
        keys = (keys << 13) + cells[:, column].clamp(max=(1 << 13) - 1)
    for axis, side in enumerate(window):
        keys = (keys << 13) + (places[:, axis] // side).clamp(max=(1 << 13) - 1)
    return torch.argsort(keys, stable=True)


def coordinate_rows(
    coordinates: Tensor, axis: int, columns: int, start: int, length: int
) -> Tensor:
    """`[N, k]` for `order_from_positions`, from however a model is given its tokens' places.

    Args:
        coordinates: tokens along `axis`, coordinates along `columns`, the first of every other
            axis (batch items, ends of intervals) taken for all. Where coordinates come before
            tokens, they may be in any unit: each is replaced by its rank among those of its kind.
        start: the stream's first token.
        length: of the stream.
    """
    rows = coordinates.movedim((axis, columns), (0, 1)).narrow(0, start, length)
    while rows.dim() > 2:
        rows = rows.select(2, 0)
    return rows if axis < columns else _ranks(rows)


def _ranks(rows: Tensor) -> Tensor:
    """`[N, k]` int64: how many smaller values a value has in its column."""
    values, places = rows.sort(0)
    steps = torch.zeros_like(places)
    steps[1:] = values[1:] != values[:-1]
    return torch.zeros_like(places).scatter(0, places, steps.cumsum(0))


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
