"""Refresh: a step computes a share of the tokens, the others remember (`toma_fx.refresh`).

Nothing is planned: which tokens is a matter of the grid and of the guard's count of calls. What is
kept between calls is, for every exit, the last one or two values of each token and how far their
trends held, and for the whole graph when each class of tokens was computed. All are buffers that
the graph changes in place.

With a given α, prediction and spreading are linear, and everything but attention acts on each token
alone. So one memory of what a block changes gives what one at each of its regions would, and where
attention sees the computed tokens alone, one for a run of blocks: the largest scope is the
cheapest. A fitted α is that of what a memory holds, and differs a little from scope to scope. Not
so where a gate changes with the timestep: behind it, memory is of another gate (`find.gates`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from torch import Tensor, fx

from toma_fx import recall, rotation
from toma_fx.config import FIT, TomaConfig
from toma_fx.devices.profile import DeviceProfile
from toma_fx.merging import (
    around_picture,
    between_text,
    gather_picture,
    picture_tokens,
    text_around,
)
from toma_fx.passes.find.keys import places_inside
from toma_fx.passes.find.region import Group, Region
from toma_fx.passes.graph.nodes import shape
from toma_fx.passes.graph.work import Work
from toma_fx.passes.methods.base import MemoryPlan, Method, all_readers
from toma_fx.passes.methods.kept import Kept
from toma_fx.passes.methods.pace import Computes
from toma_fx.passes.methods.slots import Moment, SlotBuffer
from toma_fx.share import Share, share_of
from toma_fx.windows import Windows


class RefreshPlan(MemoryPlan):
    """What a call computes of a grid, and a memory for each exit.

    Where graphs of another pace rest, text has a memory too: it sees the picture in an attention
    that is not computed there.
    """

    def merge(self, entry: fx.Node, start: int, ordered: bool, region: Region) -> fx.Node:
        arguments = (entry, self._destination_rows(), start, self.windows.tokens)
        merged: fx.Node = self._emit.inline(gather_picture, *arguments, like=region.seeds[0])
        return merged

    def unmerge(self, merged: fx.Node, start: int, ordered: bool, like: fx.Node) -> fx.Node:
        value = merged.meta["val"]
        memory = self._of_picture(value)
        span = (start, self.windows.merged)
        full, *new = self._emit.inline(
            _recalled, merged, *span, *memory.read(), *self._tables, self._moment.fresh, like=like
        )
        memory.write(new)
        if self._has_text(value, self.windows.merged):
            self.learn_text(self._emit.inline(text_around, merged, *span))
        return full

    def learn(self, change: fx.Node, start: int) -> None:
        span = (start, self.windows.tokens)
        memory = self._of_picture(change.meta["val"])
        picture = self._emit.inline(picture_tokens, change, *span)
        memory.learn(picture, self._ahead, self._moment.fresh)
        if self._has_text(change.meta["val"], self.windows.tokens):
            self.learn_text(self._emit.inline(text_around, change, *span))

    def predict(self, like: fx.Node, start: int) -> fx.Node:
        memory = self._of_picture(like.meta["val"])
        arguments = (*memory.read(), self._ahead, self._moment.fresh)
        found: fx.Node = self._emit.inline(recall.predict, *arguments, like=like)
        if not self._has_text(like.meta["val"], self.windows.tokens):
            return found
        batch, length, channels = like.meta["val"].shape
        around = self._of_text(like.meta["val"], (batch, length - self.windows.tokens, channels))
        arguments = (*around.read(), self._text_ahead, self._moment.fresh)
        text = self._emit.inline(recall.predict, *arguments)
        whole: fx.Node = self._emit.inline(around_picture, text, found, start, like=like)
        return whole

    def learn_text(self, text: fx.Node) -> None:
        if self._moment.pace.rests:
            value = text.meta["val"]
            memory = self._of_text(value, tuple(value.shape))
            memory.learn(text, self._text_ahead, self._moment.fresh)

    def predict_text(self, like: fx.Node) -> fx.Node:
        value = like.meta["val"]
        memory = self._of_text(value, tuple(value.shape))
        arguments = (*memory.read(), self._text_ahead, self._moment.fresh)
        found: fx.Node = self._emit.inline(recall.predict, *arguments, like=like)
        return found

    def _has_text(self, value: Tensor, picture: int) -> bool:
        return self._moment.pace.rests and value.shape[1] > picture

    def _of_picture(self, value: Tensor) -> Kept:
        sizes = (int(value.shape[0]), self.windows.tokens, int(value.shape[2]))
        return self._kept("", value, sizes, self._moment.pace.rests)

    def _of_text(self, value: Tensor, sizes: tuple[int, ...]) -> Kept:
        return self._kept("text_", value, tuple(map(int, sizes)))

    def _kept(
        self, prefix: str, value: Tensor, sizes: tuple[int, ...], hears: bool = False
    ) -> Kept:
        """The memory of the next exit, or of the next piece of text."""
        numbers: Iterator[int] = self._emit.once(("memories", prefix), itertools.count)
        name = f"toma_memory_{prefix}{next(numbers)}"
        return Kept(self._emit, name, self._moment, sizes, value, self._config, hears)

    def _make(self, hidden: fx.Node, moment: Moment | None, ordered: bool) -> None:
        assert moment is not None
        self._moment = moment
        self._share = share_of(self._config.ratio)
        device = hidden.meta["val"].device
        first, due, carried = self._emit.once("times", partial(self._advance, device))
        text = partial(self._emit.inline, _at, carried, self._share.classes)
        self._text_ahead = self._emit.once("text ahead", text)
        rows, classes, near, weights = self._of_grid(first, device)
        self._rows = self._emit.inline(_items_first, rows)
        by_token = (classes, weights, due, carried, moment.fresh, self._config.gain)
        gained, self._ahead, stored = self._emit.once(
            ("by token", classes), lambda: self._emit.inline(recall.by_token, *by_token)
        )
        self._tables = (rows, near, gained, self._ahead, stored)

    def _advance(self, device: torch.device) -> tuple[fx.Node, ...]:
        """Count the call, once a graph: all exits go through the same steps."""
        size = recall.times_size(self._share)
        where = ((size,), torch.float32, device)
        times = SlotBuffer(self._emit, "toma_memory_times", self._moment, *where)
        given = self._config.extrapolate
        computes = _CLASSES[self._moment.pace.computes](self._share)
        more = (
            *(self._moment.fresh, self._share, 1.0 if given == FIT else given),
            *(computes, self._moment.call),
        )
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


_CLASSES: dict[Computes, Callable[[Share], int]] = {
    Computes.SHARE: lambda share: share.computed,
    Computes.ALL: lambda share: share.classes,
    Computes.NONE: lambda share: 0,
}


def _recalled(
    merged: Tensor,
    start: int,
    length: int,
    last: Tensor,
    before: Tensor | None,
    trend: Tensor | None,
    heard: Tensor | None,
    *tables: Tensor,
) -> tuple[Tensor, ...]:
    """`[B, L − N + D, C]` to `[B, L, C]` and the new memory of its picture."""
    computed = merged if length == merged.shape[1] else merged.narrow(1, start, length)
    picture, *new = recall.recall(computed, last, before, trend, heard, *tables)
    return between_text(merged, picture, start, start + length), *new


def _items_first(rows: Tensor) -> Tensor:
    return rows.unsqueeze(0)


def _at(table: Tensor, place: Tensor | int) -> Tensor:
    if isinstance(place, int):
        return table[place]
    return table.index_select(0, place.reshape(1)).squeeze(0)


def windows(tokens: int, size: int, config: TomaConfig) -> Windows:
    """All tokens as one window, of which those of the computed classes are left."""
    return Windows(tokens, 1, tokens, _kept(tokens, share_of(config.ratio)))


def _kept(tokens: int, share: Share) -> int:
    return min(share.kept(tokens), tokens)


def merging(region: Region, windows: Windows) -> list[Work]:
    """One gather, and at each exit a kernel over the computed tokens and more of one over all.

    The residual addition is there anyway. Beside what it moves, it reads and writes two values.
    A trend that is fitted is one more kernel over the computed tokens. A scope's count once.
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
        found.append(Work("fused", 0.0, 3 * width * windows.merged, dtype))
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
