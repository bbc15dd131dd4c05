"""The nodes of a token order in the graph that is being built."""

from __future__ import annotations

import hashlib

import torch
from torch import fx

from toma_fx.merging import row_index, slots_from_sequence
from toma_fx.order import coordinate_rows, curve_table, order_from_positions
from toma_fx.passes.find.region import Group
from toma_fx.passes.graph.emit import Emitter
from toma_fx.passes.graph.nodes import aten

ORDER = "toma_order_"
"""Names of constant orders begin so."""

FINGERPRINT = "toma_order"
"""What a constant order holds, in its node's metadata: it need not be read back from a device."""


class OrderNodes:
    """A token order: its nodes, shared by all groups that use it, made where first asked for."""

    def __init__(
        self,
        group: Group,
        emit: Emitter,
        copies: dict[fx.Node, fx.Node],
        device: torch.device,
    ) -> None:
        self._group = group
        self._emit = emit
        self._copies = copies
        self._device = device
        self._length = group.windows.tokens
        self._indexes: dict[tuple[bool, int, int], fx.Node] = {}
        self._made: tuple[fx.Node | None, fx.Node | None] | None = None

    @property
    def order(self) -> fx.Node | None:
        """`[W·n]`, the token in each slot; None where slots are the tokens."""
        return self._nodes()[0]

    @property
    def inverse(self) -> fx.Node | None:
        """`[N]`, the slot of each token; likewise."""
        return self._nodes()[1]

    def positions(self) -> fx.Node | None:
        """`[N, k]` coordinates of the tokens; None where the grid is no data."""
        at = self._group.positions
        if at is None:
            return None
        place = (at.axis, at.columns, at.start, at.length)
        found: fx.Node = self._emit.inline(coordinate_rows, self._copies[at.node], *place)
        return found

    def _nodes(self) -> tuple[fx.Node | None, fx.Node | None]:
        if self._made is None:
            self._made = self._from_positions() or self._from_tables()
        return self._made

    def _from_positions(self) -> tuple[fx.Node, fx.Node] | None:
        rows, group = self.positions(), self._group
        if rows is None:
            return None
        curve = self._table(curve_table().tolist(), "curve")
        how = (group.side, group.follows, curve)
        sequence = self._emit.inline(order_from_positions, rows, *how)
        ranks = self._table(group.windows.slot_ranks(), "ranks")
        slots = self._table(group.windows.rank_slots(), "slots")
        order, inverse = self._emit.inline(slots_from_sequence, sequence, ranks, slots)
        return order, inverse

    def _from_tables(self) -> tuple[fx.Node | None, fx.Node | None]:
        slots = self._group.order
        if slots is None:
            return None, None
        inverse = [0] * self._length
        for slot, token in reversed(list(enumerate(slots))):
            inverse[token] = slot
        return self._table(slots, "slots"), self._table(inverse, "inverse")

    def _table(self, entries: list[int] | tuple[int, ...], label: str) -> fx.Node:
        name = f"{ORDER}{self._group.index}_{label}"
        node = self._emit.buffer(name, lambda: torch.tensor(entries, device=self._device))
        node.meta[FINGERPRINT] = hashlib.sha256(repr(entries).encode()).digest()
        return node

    def index(self, back: bool, start: int, total: int) -> fx.Node:
        """`[1, total]` rows that bring an axis into window order, or back; text keeps its place."""
        key = (back, start, total)
        if key not in self._indexes:
            rows = self._emit.call(
                aten.unsqueeze.default, (self.inverse if back else self.order, 0)
            )
            after = total - start - self._length
            self._indexes[key] = self._emit.inline(row_index, rows, start, after, self._length)
        return self._indexes[key]
