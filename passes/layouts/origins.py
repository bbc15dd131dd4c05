"""Streams as values: the origins of an axis in the order of its tokens, their parts, likeness."""

from __future__ import annotations

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
            whole = last - first == origin.length
            found.append(
                replace(
                    origin,
                    length=last - first,
                    start=origin.start + first - at,
                    grid=origin.grid if whole else None,
                )
            )
        at += origin.length
    return tuple(found)


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
