"""ToDo: keys and values of self-attention from one token of each cell; nothing to unmerge.

Source: Smith et al., "ToDo: Token Downsampling for Efficient Generation of High-Resolution
Images", arXiv 2402.13573: nearest-neighbour sampling of what keys and values are made of.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx

from toma_fx.config import TomaConfig
from toma_fx.merging import gather_picture
from toma_fx.passes.find.keys import key_and_value_readers
from toma_fx.passes.find.region import Group, Region
from toma_fx.passes.graph.work import Work
from toma_fx.passes.methods.base import Method, Plan
from toma_fx.passes.methods.slots import Moment
from toma_fx.windows import Windows, cut


class SampledPlan(Plan):
    """The first token of every cell: data only where the grid is."""

    def merge(self, entry: fx.Node, start: int, ordered: bool, region: Region) -> fx.Node:
        arguments = (entry, self._destination_rows(), start, self.windows.tokens)
        merged: fx.Node = self._emit.inline(gather_picture, *arguments, like=region.seeds[0])
        return merged

    def unmerge(self, merged: fx.Node, start: int, ordered: bool, like: fx.Node) -> fx.Node:
        raise AssertionError("keys and values end in the attention")

    def _make(self, hidden: fx.Node, moment: Moment | None, ordered: bool) -> None:
        device = hidden.meta["val"].device
        size = self.windows.size
        slots = [window * size for window in range(self.windows.count)]
        if self._order.order is None:
            slots = [self.windows.slot_ranks()[slot] for slot in slots]
        first = self._emit.buffer(
            f"toma_cells_{self._group.index}", lambda: torch.tensor(slots, device=device)
        )
        if self._order.order is None:
            self._rows = self._emit.inline(_items_first, first)
        else:
            self._rows = self._emit.inline(_items_first, first, self._order.order)

    def _destination_rows(self) -> fx.Node:
        assert self._rows is not None
        return self._rows


def _items_first(slots: Tensor, order: Tensor | None = None) -> Tensor:
    return (slots if order is None else order[slots]).unsqueeze(0)


def cells(config: TomaConfig) -> tuple[int, str]:
    """Square cells of `1 / (1 − ratio)` tokens; pairs of neighbours at ratio 0.5."""
    size = cell_tokens(config)
    return (math.isqrt(size), "cell") if math.isqrt(size) ** 2 == size else (size, "pair")


def cell_tokens(config: TomaConfig) -> int:
    return round(1 / (1 - config.ratio))


def windows(tokens: int, size: int, config: TomaConfig) -> Windows:
    cut_ = cut(tokens, cell_tokens(config), 0.0)
    return Windows(tokens, cut_.count, cut_.size, 1)


def merging(region: Region, windows: Windows) -> list[Work]:
    """One gather."""
    value = region.entry.meta["val"]
    moved = 2 * int(value.shape[0]) * windows.merged * value.element_size() * region.channels
    return [Work("fused", 0.0, moved, value.dtype)]


def planning(group: Group, config: TomaConfig, profile: object) -> float:
    """Nothing is chosen."""
    return 0.0


METHOD = Method(
    plan=SampledPlan,
    cells=cells,
    windows=windows,
    readers=key_and_value_readers,
    merging=merging,
    planning=planning,
    returns=False,
)
