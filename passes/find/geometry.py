"""Where the tokens of a stream stand: a grid that the graph folds, or coordinates that are data.

A stream may have been packed before it came, so that its own origin shows no sides. What rotates
its queries still does: a table is folded from the sides of a grid, or computed from coordinates
that are an input. Both are read backwards from a table that meets the stream token by token.
"""

from __future__ import annotations

from collections.abc import Iterator

from toma_fx.passes.find.region import Positions, Region
from toma_fx.passes.graph.nodes import shape
from toma_fx.passes.layouts.layout import AtDestinations, Origin, tables
from toma_fx.passes.layouts.origins import Piece, Stream, between, whole_rows
from toma_fx.passes.layouts.streams import Streams

AXES = (2, 3, 4)
"""Coordinates of a token: row and column, a frame or a picture before, one more behind."""


def read_geometry(region: Region, streams: Streams) -> None:
    """Set the region's grid, pictures or positions, where a table that it gathers tells them."""
    assert region.origin is not None
    _read_run(region, region.origin)
    for stream in _streams(region, streams):
        # One side alone is no grid: coordinates in front of their tokens look like channels.
        grids = [origin.grid if len(origin.grid or ()) > 1 else None for origin in stream]
        if len(stream) == 1 and grids[0] is not None:
            region.grid = grids[0]
            return
        if len(stream) == 1 and stream[0].within is not None:
            _read_run(region, stream[0])
            return
        if None not in grids:
            region.pictures = tuple(Piece(origin.length, origin.grid) for origin in stream)
            return
        if len(stream) == 1 and region.positions is None:
            region.positions = _positions(stream[0])


def _read_run(region: Region, origin: Origin) -> None:
    """Of tokens that are a run of a grid's, as a rank has one: that grid, and their own rows."""
    if origin.within is not None:
        region.within = origin.within
        region.grid = whole_rows(*origin.within, origin.length)


def _streams(region: Region, streams: Streams) -> Iterator[Stream]:
    """Where the merged tokens of each table begin."""
    for step in region.steps.values():
        for table in tables(step):
            if isinstance(table.table, AtDestinations):
                continue
            stream = streams.of(table.table, table.axis - table.leading)
            at = 0
            for segment in table.segments:
                if segment.merged:
                    yield between(stream, at, at + segment.length)
                at += segment.length


def _positions(origin: Origin) -> Positions | None:
    """Coordinates are an input `[N, k]`, `[1, N, k]`, or with axes before tokens `[B, k, N, …]`."""
    sizes = shape(origin.node)
    batch = len(sizes) > 2
    # Behind tokens that have coordinates in front of them, an axis is the ends of an interval.
    last = len(sizes) if len(sizes) < 4 else origin.axis
    columns = [a for a in range(batch, last) if a != origin.axis and sizes[a] in AXES]
    if origin.node.op != "placeholder" or not columns:
        return None
    axis = max(columns, key=lambda a: sizes[a])
    return Positions(origin.node, origin.start, origin.length, origin.axis, axis)
