"""Refresh: a step computes a share of the tokens, the others remember (`toma_fx.refresh`).

Nothing is planned: which tokens is a matter of the grid and of the guard's count of calls. What is
kept between calls is, for every exit, the last one or two values of each token, and for the whole
graph when each class of tokens was computed. Both are buffers that the graph changes in place.

Prediction and spreading are linear, and everything but attention acts on each token alone. So one
memory of what a block changes gives what one at each of its regions would, and where attention
sees the computed tokens alone, one for a run of blocks: the largest scope is the cheapest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, fx

from toma_fx import recall, rotation
from toma_fx.config import TomaConfig
from toma_fx.devices.profile import DeviceProfile
from toma_fx.merging import between_text, gather_picture
from toma_fx.passes.find.keys import places_inside
from toma_fx.passes.find.region import Group, Region
from toma_fx.passes.graph.nodes import shape
from toma_fx.passes.graph.work import Work
from toma_fx.passes.methods.base import Method, Plan, all_readers
from toma_fx.passes.methods.slots import Moment, SlotBuffer, SlotTensors
from toma_fx.share import Share, share_of
from toma_fx.windows import Windows

_FEW = 3  # slots: of more, all of a memory is too much to read and write


class RefreshPlan(Plan):
    """What a call computes of a grid, and a memory for each exit."""

    def merge(self, entry: fx.Node, start: int, ordered: bool, region: Region) -> fx.Node:
        arguments = (entry, self._destination_rows(), start, self.windows.tokens)
        merged: fx.Node = self._emit.inline(gather_picture, *arguments, like=region.seeds[0])
        return merged

    def unmerge(self, merged: fx.Node, start: int, ordered: bool, like: fx.Node) -> fx.Node:
        value = merged.meta["val"]
        kind = SlotTensors if self._moment.slots <= _FEW else SlotBuffer
        where = (value.dtype, value.device)
        sizes = (int(value.shape[0]), self.windows.tokens, int(value.shape[2]))
        number = len(self._exits)
        self._exits.append(like)
        kept = [
            kind(self._emit, f"toma_memory_{number}_{name}", self._moment, sizes, *where)
            for name in ("last", "before")[: self._config.history]
        ]
        known = [buffer.read() for buffer in kept] + [None] * (2 - len(kept))
        span = (start, self.windows.merged)
        full, *new = self._emit.inline(
            _recalled, merged, *span, *known, *self._tables, self._moment.fresh, like=like
        )
        for buffer, node in zip(kept, new, strict=True):
            buffer.write(node)
        return full

    def _make(self, hidden: fx.Node, moment: Moment | None, ordered: bool) -> None:
        assert moment is not None
        self._moment = moment
        self._share = share_of(self._config.ratio)
        self._exits: list[fx.Node] = self._emit.once("exits", list)
        device = hidden.meta["val"].device
        first, due, carried = self._emit.once("times", partial(self._advance, device))
        rows, classes, near, weights = self._of_grid(first, device)
        self._rows = self._emit.inline(_items_first, rows)
        by_token = (classes, weights, due, carried, moment.fresh, self._config.gain)
        gained, ahead, stored = self._emit.once(
            ("by token", classes), lambda: self._emit.inline(recall.by_token, *by_token)
        )
        self._tables = (rows, near, gained, ahead, stored)

    def _advance(self, device: torch.device) -> tuple[fx.Node, ...]:
        """Count the call, once a graph: all exits go through the same steps."""
        size = recall.times_size(self._share)
        where = ((size,), torch.float32, device)
        times = SlotBuffer(self._emit, "toma_memory_times", self._moment, *where)
        more = (self._moment.fresh, self._share, self._config.extrapolate)
        new, *found = self._emit.inline(recall.advance, times.read(), *more)
        times.write(new)
        return tuple(found)

    def _of_grid(self, first: fx.Node, device: torch.device) -> tuple[fx.Node, ...]:
        """Nodes of `recall.tables`, shared by all groups of a grid."""
        positions, grid = self._group.positions, self._group.grid or (1, self.windows.tokens)
        nodes: tuple[fx.Node, ...] = (
            self._emit.once(grid, partial(self._from_grid, grid, first, device))
            if positions is None
            else self._emit.once(positions, partial(self._from_positions, first))
        )
        return nodes

    def _from_positions(self, first: fx.Node) -> tuple[fx.Node, ...]:
        ids = self._order.positions()
        assert ids is not None
        value = ids.meta["val"]
        make = partial(rotation.stencil, self._share, int(value.shape[1]))
        label = f"toma_positions_{self._group.index}"
        around = self._constants(label, ("moves", "gauss"), make, value.device)
        found = self._emit.inline(recall.tables_of_positions, ids, first, self._share, *around)
        return tuple(found)

    def _from_grid(
        self, grid: tuple[int, ...], first: fx.Node, device: torch.device
    ) -> tuple[fx.Node, ...]:
        make = partial(recall.every_table, grid, self._share)
        names = ("rows", "classes", "near", "weights")
        label = "x".join(map(str, grid))
        rows, classes, near, weights = self._constants(f"toma_grid_{label}", names, make, device)
        rows, near, weights = (
            self._emit.inline(_at, table, first) for table in (rows, near, weights)
        )
        return rows, classes, near, weights

    def _constants(
        self,
        label: str,
        names: Iterable[str],
        make: Callable[[], tuple[Tensor, ...]],
        device: torch.device,
    ) -> list[fx.Node]:
        """Buffers of what `make` returns."""
        return [
            self._emit.buffer(f"{label}_{name}", lambda place=place: make()[place].to(device))  # type: ignore[misc]
            for place, name in enumerate(names)
        ]

    def _destination_rows(self) -> fx.Node:
        assert self._rows is not None
        return self._rows


def _recalled(
    merged: Tensor, start: int, length: int, last: Tensor, before: Tensor | None, *tables: Tensor
) -> tuple[Tensor, ...]:
    """`[B, L − N + D, C]` to `[B, L, C]` and the new memory of its picture."""
    computed = merged if length == merged.shape[1] else merged.narrow(1, start, length)
    rows, near, gained, ahead, stored, fresh = tables
    picture, *new = recall.recall(computed, last, before, rows, near, gained, ahead, stored, fresh)
    return between_text(merged, picture, start, start + length), *new


def _items_first(rows: Tensor) -> Tensor:
    return rows.unsqueeze(0)


def _at(table: Tensor, place: Tensor) -> Tensor:
    return table.index_select(0, place.reshape(1)).squeeze(0)


def windows(tokens: int, size: int, config: TomaConfig) -> Windows:
    """All tokens as one window, of which those of the computed classes are left."""
    return Windows(tokens, 1, tokens, _kept(tokens, share_of(config.ratio)))


def _kept(tokens: int, share: Share) -> int:
    return min(share.kept(tokens), tokens)


def merging(region: Region, windows: Windows) -> list[Work]:
    """One gather, and at each exit a kernel over the computed tokens and more of one over all.

    The residual addition is there anyway. Beside what it moves, it reads and writes two values.
    A scope's count once.
    """
    whole = region.scope or region
    if region is not whole.members[0]:
        return []
    value = whole.entry.meta["val"]
    row, dtype = int(value.shape[0]) * value.element_size(), value.dtype
    gathered = 2 * row * windows.merged * whole.channels
    found = [Work("fused", 0.0, gathered, dtype)]
    for node in whole.exits:
        width = row * shape(node)[-1]
        found.append(Work("fused", 0.0, 4 * width * windows.merged, dtype))
        found.append(Work("fused", 0.0, 4 * width * windows.tokens, dtype))
    return found


def planning(group: Group, config: TomaConfig, profile: DeviceProfile) -> float:
    """A few kernels over the tokens' places."""
    return 4 * profile.launch


METHOD = Method(
    plan=RefreshPlan,
    cells=lambda config: (1, "lattice"),
    windows=windows,
    readers=all_readers,
    merging=merging,
    planning=planning,
    stateful=True,
    remembers=True,
    sees_all=places_inside,
)
