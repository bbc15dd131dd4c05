"""Streams as values: the origins of an axis in the order of its tokens, their parts, likeness."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from toma_fx.passes.layouts.layout import Origin

Stream = tuple[Origin, ...]
Key = tuple[str, int, int]


@dataclass(frozen=True)
class Piece:
    """A part of an origin's tokens: how many, and the grid that they stand on, if that is known."""

    length: int
    grid: tuple[int, ...] | None = None


Cuts = dict[Key, tuple[Piece, ...]]
"""The parts, in order, of origins that hold more than one stream."""


def between(stream: Stream, start: int, stop: int) -> Stream:
    """The origins of the tokens `start … stop` of a stream."""
    found, at = [], 0
    for origin in stream:
        first, last = max(start, at), min(stop, at + origin.length)
        if first < last:
            found.append(_run(origin, first - at, last - first))
        at += origin.length
    return tuple(found)


def _run(origin: Origin, first: int, length: int) -> Origin:
    """Some of an origin's tokens, one after the other."""
    if length == origin.length:
        return origin
    sides, before = (origin.grid, 0) if origin.within is None else origin.within
    within = (sides, before + first) if sides is not None and len(sides) > 1 else None
    return replace(origin, length=length, start=origin.start + first, grid=None, within=within)


def whole_rows(sides: tuple[int, ...], first: int, length: int) -> tuple[int, ...] | None:
    """The grid of a run of a grid's tokens; None if it begins or ends within a row.

    Of a video whose frames are cut as well, a frame of the result is as many rows as fit into each
    frame and into the run, so that none holds rows of two.
    """
    *slow, height, width = sides
    if first % width or length % width:
        return None
    rows = math.gcd(height, first // width, length // width) if slow else length // width
    frames = (length // (rows * width),) if slow else ()
    return (*frames, rows, width)


def common_start(streams: Sequence[Stream]) -> Stream:
    """The origins of the first stream up to where another is not built like it.

    Equal lengths and grids make streams alike, whatever nodes they begin at.
    """
    columns = zip(*streams, strict=False)
    return tuple(column[0] for column in takewhile(_built_alike, columns))


def alike(stream: Stream, other: Stream) -> bool:
    """Whether both have the same tokens, by where these begin."""
    return [(o.key, o.length) for o in stream] == [(o.key, o.length) for o in other]


def _built_alike(column: tuple[Origin, ...]) -> bool:
    return len({(origin.length, origin.grid) for origin in column}) == 1
