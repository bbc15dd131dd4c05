"""Where the tokens stand in a tensor, and which of them are merged.

`TokenLayout(axis, batch, segments)` says which dimension carries tokens and how it is cut, for
example `(text 512 | image 4096 → merged)`. The merged count is not known while layouts flow: the
plan decides it later. Arguments that depend on it are `TokenCount` and `AtDestinations` objects,
which only the rewrite turns into numbers and nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch.fx import Node

from toma_fx.passes.graph.nodes import map_leaves


@dataclass(frozen=True)
class Segment:
    """A run of tokens: its length in the unmerged graph, and whether the region merges it."""

    length: int
    merged: bool = False


@dataclass(frozen=True)
class Ranks:
    """Tokens of several ranks in one tensor, after an exchange: all ranks have as many.

    Attributes:
        count: of ranks.
        group: that exchanged them.
        axis: at whose place `r` the tokens are those of rank `r`; None once it is folded into the
            token axis, where the tokens of one rank follow those of another.
        place: of the one rank whose tokens these are, taken out of all; then no axis counts ranks.
        inner: what each of them had from an exchange in another group.
    """

    count: int
    group: str
    axis: int | None
    place: int | None = None
    inner: Ranks | None = None


@dataclass(frozen=True)
class TokenLayout:
    """Which axis carries tokens, which one batch items (None once folded), and the segments.

    `ranks` is None where all tokens are this rank's own.
    """

    axis: int
    batch: int | None
    segments: tuple[Segment, ...]
    ranks: Ranks | None = None

    @property
    def length(self) -> int:
        """Tokens along the axis in the unmerged graph."""
        return sum(segment.length for segment in self.segments)

    @property
    def is_merged(self) -> bool:
        return self.pictures > 0

    @property
    def pictures(self) -> int:
        """Merged segments: more than one where a stream is joined with itself."""
        return sum(segment.merged for segment in self.segments)

    @property
    def merged_spans(self) -> tuple[tuple[int, int], ...]:
        """`(start, stop)` of the merged segments, in tokens of the unmerged graph."""
        spans, at = [], 0
        for segment in self.segments:
            spans += [(at, at + segment.length)] * segment.merged
            at += segment.length
        return tuple(spans)

    def moved(self, axis: int, batch: int | None) -> TokenLayout:
        return replace(self, axis=axis, batch=batch)

    def between(self, start: int, stop: int) -> tuple[Segment, ...] | None:
        """The segments of `[start, stop)`, None where a border cuts a merged segment."""
        found = []
        at = 0
        for segment in self.segments:
            first, last = max(start, at), min(stop, at + segment.length)
            if first < last:
                if segment.merged and last - first != segment.length:
                    return None
                found.append(replace(segment, length=last - first))
            at += segment.length
        return tuple(found)


@dataclass(frozen=True)
class TokenCount:
    """Stands in an argument for the number of tokens of `segments` after merging."""

    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class AtDestinations:
    """Stands in an argument for `table`, its rows along `axis` taken at the destinations.

    `batch` is the axis of the table that meets the batch axis of the merged operand, after
    `leading` size-one axes are put in front of the table.
    """

    table: Node | AtDestinations
    axis: int
    batch: int | None
    segments: tuple[Segment, ...]
    leading: int = 0


@dataclass(frozen=True)
class Step:
    """What a rule says of one node of a region.

    Attributes:
        layout: of the result; a tuple for several results; None where it is unmerged.
        args: the node's arguments on merged tokens, None where they stay.
        kwargs: likewise.
        target: another operation to call, None where it stays.
        exit: index of the argument to unmerge; the node itself then runs at full length.
        stream: of an exit, the residual stream, where that is not the node's other argument.
    """

    layout: TokenLayout | tuple[TokenLayout | None, ...] | None = None
    args: tuple[Any, ...] | None = None
    kwargs: dict[str, Any] | None = None
    target: Callable[..., Any] | None = None
    exit: int | None = None
    stream: Node | None = None


def tables(step: Step) -> list[AtDestinations]:
    """The position tables that a step reads at the destinations."""
    found: list[AtDestinations] = []

    def collect(item: Any) -> Any:
        if isinstance(item, AtDestinations):
            found.append(item)
        return item

    map_leaves((step.args, step.kwargs), collect)
    return found


@dataclass
class Origin:
    """Where a token axis begins: the node and axis, its length, and the grid if it folds one."""

    node: Node
    axis: int
    length: int
    grid: tuple[int, ...] | None = None
    # Where inside the origin's axis the tokens lie: a slice of an input keeps its start.
    start: int = field(default=0)
    # Of a run of a grid's tokens, as a rank has one: the sides of that grid, and the first token.
    within: tuple[tuple[int, ...], int] | None = None

    @property
    def key(self) -> tuple[str, int, int]:
        return (self.node.name, self.axis, self.start)
