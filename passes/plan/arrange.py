"""Within pass 3: the windows of a stream, and the order of tokens in which they are runs.

A window is a tile of the grid where tiles divide it, and a run of a Hilbert curve where they do
not. Where the grid is data, so is the order: it is sorted in the graph.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from toma_fx import order as orders
from toma_fx.config import TomaConfig
from toma_fx.errors import CannotRewrite
from toma_fx.passes.find.region import Positions, Region
from toma_fx.passes.graph.outside import Outside
from toma_fx.passes.layouts.origins import Piece
from toma_fx.passes.methods import Method
from toma_fx.windows import Windows


@dataclass(frozen=True)
class Arrangement:
    """Windows, and which token stands in which slot.

    Attributes:
        windows: how many, how large.
        slots: the token of each slot, None where that is the next one.
        positions: the coordinates that give the order, where they are data.
        note: what a user should know of it.
        grid: sides of the grid, for a method that goes by places instead of windows.
    """

    windows: Windows
    slots: tuple[int, ...] | None
    positions: Positions | None
    note: str
    grid: tuple[int, ...] | None = None


def arrange(region: Region, config: TomaConfig, method: Method, outside: Outside) -> Arrangement:
    """Windows and token order of a stream.

    Args:
        region: one of those that share them.
        config: what the user chose.
        method: which kind of windows.
        outside: what is known of the grid where the graph does not show it.

    Raises:
        CannotRewrite: the order needs the grid, and nothing tells it.
    """
    tokens = region.tokens
    side, follows = method.cells(config)
    if follows == "lattice":
        return _places(region, config, method, outside)
    size = side**2 if isinstance(side, int) else math.prod(side)
    if follows in ("stripe", "global", "pair"):
        size = {"stripe": size, "global": tokens, "pair": math.isqrt(size)}[follows]
        return _static(method.windows(tokens, size, config), list(range(tokens)), "")
    told = None if _shows(region, config) else _coordinates(region, outside)
    if told is not None:
        sequence = orders.order_from_positions(told, side, follows, orders.curve_table()).tolist()
        return _static(method.windows(tokens, size, config), sequence, "")
    grids, note = _grids(region, config, outside)
    if not grids:
        return Arrangement(method.windows(tokens, size, config), None, region.positions, note)
    if len(grids[0]) == 1:  # a sound: neighbours are those in sequence
        return _static(method.windows(tokens, size, config), list(range(tokens)), note)
    sides = max((orders.tile_sides(grid, side) for grid in grids), key=math.prod)
    notes = [note] if note else []
    if math.prod(sides) != size:
        notes.append(f"window clamped to {_times(sides)}")
    windows = method.windows(tokens, math.prod(sides), config)
    sequence = []
    for grid in grids:
        if len(sequence) % windows.size or (sequence and windows.pads):
            notes.append("pictures share a window where they meet")
        found, own = _sequence(grid, side, follows)
        sequence += [len(sequence) + token for token in found]
        notes += [own] if own else []
    return _static(windows, sequence, "; ".join(dict.fromkeys(notes)))


def _places(region: Region, config: TomaConfig, method: Method, outside: Outside) -> Arrangement:
    """The grid itself, for a method that goes by the places of tokens: no order, no windows."""
    tokens = region.tokens
    windows = method.windows(tokens, tokens, config)
    if config.order == "stripe":
        return Arrangement(windows, None, None, "", (1, tokens))
    if region.within is not None and not _shows(region, config):
        note = "a rank's tokens are no whole rows of the grid: neighbours are those in sequence"
        return Arrangement(windows, None, None, note, (1, tokens))
    grids, note = _grids(region, config, outside)
    if not grids:
        return Arrangement(windows, None, region.positions, note)
    return Arrangement(windows, None, None, note, _stacked(grids, tokens))


def _stacked(grids: list[tuple[int, ...]], tokens: int) -> tuple[int, ...]:
    """One grid of all pictures: frames of a video if they are alike, else tokens in sequence."""
    first = grids[0]
    if len(first) == 1 or set(grids) != {first}:
        return (1, tokens)
    return first if len(grids) == 1 else (math.prod(first[:-2]) * len(grids), *first[-2:])


def _sequence(grid: tuple[int, ...], side: orders.Window, follows: str) -> tuple[list[int], str]:
    """A picture's tokens, window by window; and why windows are no tiles, where they should be."""
    if follows in ("tile", "cell") and orders.divides(grid, side):
        return orders.tile_order(grid, side).tolist(), ""
    found = orders.hilbert_order(grid, frames=not isinstance(side, int)).tolist()
    tiles = follows in ("tile", "cell")
    return found, f"tiles do not divide {_times(grid)}: Hilbert windows" if tiles else ""


def _static(windows: Windows, sequence: list[int], note: str) -> Arrangement:
    slots = tuple(sequence[rank] for rank in windows.slot_ranks())
    return Arrangement(
        windows, None if slots == tuple(range(windows.tokens)) else slots, None, note
    )


def _coordinates(region: Region, outside: Outside) -> Tensor | None:
    """`[N, k]` places of the region's tokens, told from outside or counted along a grid's rows."""
    if region.within is None:
        return outside.positions(region.tokens)
    sides, first = region.within
    places = torch.arange(first, first + region.tokens)
    return torch.stack(torch.unravel_index(places, sides), 1)


def _shows(region: Region, config: TomaConfig) -> bool:
    """Whether the graph or the configuration tells where tokens stand."""
    assert region.origin is not None
    read = region.origin.grid or region.grid or _whole(region.pictures, region.tokens)
    named = isinstance(config.grid, tuple) and math.prod(config.grid) == region.tokens
    return bool(read) or region.positions is not None or named


def _grids(
    region: Region, config: TomaConfig, outside: Outside
) -> tuple[list[tuple[int, ...]], str]:
    """The grids of a stream's pictures, one after the other, and a note; none where they are data.

    Configured, read, told from outside, or guessed if allowed.
    """
    tokens = region.tokens
    assert region.origin is not None
    read = region.origin.grid or region.grid
    if not _shows(region, config):
        read = outside.grid(tokens)
    pictures = _whole(region.pictures, tokens)
    known = read is not None or bool(pictures) or region.positions is not None
    if isinstance(config.grid, tuple):
        if math.prod(config.grid) == tokens:
            return [config.grid], ""
        if not known:
            given = f"grid {_times(config.grid)} has {math.prod(config.grid)} tokens, not {tokens}"
            raise CannotRewrite(given)
    if known:
        return [read] if read is not None else pictures, ""
    if config.grid == "square" and math.isqrt(tokens) ** 2 == tokens:
        return [(math.isqrt(tokens),) * 2], "square grid guessed"
    raise CannotRewrite(
        f"the grid of the {tokens} tokens is not in the graph: "
        'set TomaConfig(grid=(height, width)) or order="stripe"'
    )


def _whole(pictures: tuple[Piece, ...], tokens: int) -> list[tuple[int, ...]]:
    grids = [piece.grid for piece in pictures if piece.grid]
    return grids if sum(map(math.prod, grids)) == tokens else []


def _times(sides: tuple[int, ...]) -> str:
    return "×".join(map(str, sides))
