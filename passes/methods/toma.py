"""ToMA: facility location picks destinations, matrices merge and unmerge (`toma_fx.reference`)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx

from toma_fx.config import TomaConfig
from toma_fx.devices.profile import DeviceProfile
from toma_fx.merging import destination_rows, merge_tokens, unmerge_tokens
from toma_fx.passes.find.region import Group, Region
from toma_fx.passes.graph.nodes import shape
from toma_fx.passes.graph.work import Work
from toma_fx.passes.methods.base import Method, Plan, all_readers
from toma_fx.passes.methods.slots import Moment, SlotBuffer
from toma_fx.windows import Windows, cut

_ON_CHIP = 8.0  # how much faster than elementwise kernels from memory a cached loop runs


class WindowPlan(Plan):
    """Buffers for one plan a slot, the operation that fills them, and products by them.

    Attributes:
        merging: node of `[B·W, d, n]`.
        unmerging: node of `[B·W, n, d]`.
    """

    merging: fx.Node
    unmerging: fx.Node

    def merge(self, entry: fx.Node, start: int, ordered: bool, region: Region) -> fx.Node:
        order = None if ordered else self._order.order
        arguments = (entry, self.merging, order, start, self.windows.tokens)
        merged: fx.Node = self._emit.inline(merge_tokens, *arguments, like=region.seeds[0])
        return merged

    def unmerge(self, merged: fx.Node, start: int, ordered: bool, like: fx.Node) -> fx.Node:
        inverse = None if ordered else self._order.inverse
        arguments = (merged, self.unmerging, inverse, start, self.windows.merged)
        full: fx.Node = self._emit.inline(unmerge_tokens, *arguments, like=like)
        return full

    def _make(self, hidden: fx.Node, moment: Moment | None, ordered: bool) -> None:
        assert moment is not None
        picks, merging, unmerging = self._buffers(hidden.meta["val"], moment)
        arguments = (
            hidden,
            None if ordered else self._order.order,
            moment.phase,
            picks.node,
            merging.node,
            unmerging.node,
            self._config.temperature,
            self._config.unmerge,
            bool(self._config.cfg_pairs),
            moment.slot,
        )
        self._emit.call(torch.ops.toma_fx.plan_.default, arguments)
        self._picks = picks
        self.merging, self.unmerging = merging.read(), unmerging.read()

    def _destination_rows(self) -> fx.Node:
        rows: fx.Node = self._emit.inline(
            destination_rows, self._picks.read(), self._order.order, self.windows.size
        )
        return rows

    def _buffers(self, hidden: Tensor, moment: Moment) -> Iterator[SlotBuffer]:
        """Destinations, merging and unmerging matrices."""
        windows, batch = self.windows, int(hidden.shape[0])
        count, n, d = windows.count, windows.size, windows.destinations
        for name, sizes, dtype in (
            ("destinations", (batch, count, d), torch.int64),
            ("merging", (batch * count, d, n), hidden.dtype),
            ("unmerging", (batch * count, n, d), hidden.dtype),
        ):
            name = f"toma_plan_{self._group.index}_{name}"
            yield SlotBuffer(self._emit, name, moment, sizes, dtype, hidden.device)


def merging(region: Region, windows: Windows) -> list[Work]:
    """The products that merge the entry and unmerge at each exit; a scope's count once."""
    whole = region.scope or region
    if region is not whole.members[0]:
        return []
    value = whole.entry.meta["val"]
    rows, dtype = int(value.shape[0]), value.dtype
    widths = [whole.channels, *(shape(node)[-1] for node in whole.exits)]
    moved = rows * (windows.tokens + windows.merged) * value.element_size()
    pairs = 2 * rows * windows.merged * windows.size
    return [Work("batched", pairs * width, moved * width, dtype) for width in widths]


def planning(group: Group, config: TomaConfig, profile: DeviceProfile) -> float:
    """The similarity is a batch of products; the greedy loop passes over it once a pick."""
    windows, region = group.windows, group.regions[0]
    problems = windows.count * int(region.entry.meta["val"].shape[0])
    n, d = windows.size, windows.destinations
    rates = profile.rates(torch.float32)
    similarity = 2 * problems * n * n * region.channels / rates.batched
    greedy = 4 * problems * d * n * n / (_ON_CHIP * profile.bandwidth)
    weights = 8 * problems * d * n / profile.bandwidth
    selecting = similarity + greedy + 3 * profile.launch
    weighing = similarity + weights + 2 * profile.launch
    return selecting / config.select_every + weighing / config.weigh_every


METHOD = Method(
    plan=WindowPlan,
    cells=lambda config: (config.window, config.order),
    windows=lambda tokens, size, config: cut(tokens, size, config.ratio),
    readers=all_readers,
    merging=merging,
    planning=planning,
    stateful=True,
    hoists=True,
)
