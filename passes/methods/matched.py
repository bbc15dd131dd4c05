"""ToMeSD and ToFu: bipartite matching on 2×2 cells, anew at every call (`toma_fx.matching`).

Destinations are the first tokens of cells, so a plan needs the token order only to tell the cells;
merged tokens stand in natural order otherwise. Where 2×2 cells do not divide the grid, cells are
runs of four tokens of a Hilbert curve.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import fx

from toma_fx import matching
from toma_fx.config import TomaConfig
from toma_fx.devices.profile import DeviceProfile
from toma_fx.merging import with_picture
from toma_fx.passes.find.region import Group, Region
from toma_fx.passes.graph.nodes import aten, shape
from toma_fx.passes.graph.work import Work
from toma_fx.passes.methods.base import Method, Plan, all_readers
from toma_fx.passes.methods.slots import Moment
from toma_fx.windows import Windows, cut

CELL = 4
"""Tokens of a cell: one is a destination."""


class MatchedPlan(Plan):
    """Nodes of one matching; nothing is kept between calls."""

    def merge(self, entry: fx.Node, start: int, ordered: bool, region: Region) -> fx.Node:
        how = self._merged_by(region)
        plan = (self._rows,) if how is matching.prune else (self._rows, self._sources, self._into)
        merged: fx.Node = self._emit.inline(
            with_picture, entry, how, start, self.windows.tokens, *plan, like=region.seeds[0]
        )
        return merged

    def unmerge(self, merged: fx.Node, start: int, ordered: bool, like: fx.Node) -> fx.Node:
        arguments = (merged, matching.spread_back, start, self.windows.merged, self._places)
        full: fx.Node = self._emit.inline(with_picture, *arguments, like=like)
        return full

    def _merged_by(self, region: Region) -> object:
        return matching.average

    def _make(self, hidden: fx.Node, moment: Moment | None, ordered: bool) -> None:
        heads, others = self._cells(hidden.meta["val"].device)
        removed = self.windows.tokens - self.windows.merged
        self._sources, self._into, single = self._emit.inline(
            matching.match, hidden, heads, others, removed
        )
        self._rows = self._emit.inline(matching.representatives, heads, single)
        self._places = self._emit.inline(matching.places, heads, self._sources, self._into, single)

    def _cells(self, device: torch.device) -> tuple[fx.Node, fx.Node]:
        """The first token of each cell, and all others."""
        tokens = self.windows.tokens
        firsts = cut(tokens, CELL, 0.0).slot_ranks()[:: min(CELL, tokens)]
        rest = sorted(set(range(tokens)) - set(firsts))
        found = []
        for name, ranks in (("heads", firsts), ("others", rest)):
            node = self._table(f"toma_cells_{self._group.index}_{name}", ranks, device)
            if self._order.order is not None:
                node = self._emit.call(aten.index_select.default, (self._order.order, 0, node))
            found.append(node)
        return found[0], found[1]

    def _table(self, name: str, ranks: list[int], device: torch.device) -> fx.Node:
        return self._emit.buffer(name, lambda: torch.tensor(ranks, device=device))

    def _destination_rows(self) -> fx.Node:
        raise AssertionError("made with the plan")


class FusedPlan(MatchedPlan):
    """ToFu: early layers answer to mixtures unlike to their parts, so they prune; later ones merge.

    The paper measures that on trained networks and prunes in the first half of them; here the
    first half of the merged blocks, in graph order.
    """

    def _merged_by(self, region: Region) -> object:
        return matching.prune if region.depth < 0.5 else matching.norm_preserving


def windows(tokens: int, size: int, config: TomaConfig) -> Windows:
    """All tokens as one window, of which `floor(ratio · N)` are merged away at most."""
    destinations = math.ceil(tokens / CELL)
    removed = min(math.floor(config.ratio * tokens), tokens - destinations)
    return Windows(tokens, 1, tokens, tokens - removed)


def merging(region: Region, windows: Windows) -> list[Work]:
    """Gathers and scattered additions, bound by memory; a scope's count once."""
    whole = region.scope or region
    if region is not whole.members[0]:
        return []
    value = whole.entry.meta["val"]
    widths = [whole.channels] * 2  # a scatter reads what it adds to once more
    widths += [shape(node)[-1] for node in whole.exits]
    moved = int(value.shape[0]) * (windows.tokens + windows.merged) * value.element_size()
    return [Work("fused", 0.0, moved * width, value.dtype) for width in widths]


def planning(group: Group, config: TomaConfig, profile: DeviceProfile) -> float:
    """At every call: the similarity of all tokens with all destinations, and a sort."""
    region, tokens = group.regions[0], group.windows.tokens
    value = region.entry.meta["val"]
    pairs = int(value.shape[0]) * (tokens - tokens // CELL) * (tokens // CELL)
    size = value.element_size()
    product = Work("batched", 2 * pairs * region.channels, pairs * size, value.dtype)
    largest = Work("fused", 0.0, pairs * size, value.dtype)
    ranked = Work("fused", 0.0, 16.0 * tokens * math.log2(tokens), value.dtype)
    return sum(work.seconds(profile) for work in (product, largest, ranked))


TOMESD = Method(
    plan=MatchedPlan,
    cells=lambda config: (2, "cell"),
    windows=windows,
    readers=all_readers,
    merging=merging,
    planning=planning,
    on_residual=True,
)
TOFU = replace(TOMESD, plan=FusedPlan)
