"""The nodes of a token order in the graph that is being built."""

from __future__ import annotations

import torch
from torch import fx

from toma_fx.merging import row_index, slots_from_sequence
from toma_fx.order import coordinate_rows, curve_table, order_from_positions
from toma_fx.passes.find.region import Group
from toma_fx.passes.graph.emit import Emitter
from toma_fx.passes.graph.nodes import aten


class OrderNodes:
    """A token order: its nodes, shared by all groups that use it.

    Attributes:
        order: node of `[W·n]`, the token in each slot; None where slots are the tokens.
        inverse: node of `[N]`, the slot of each token, likewise.
    """

    def __init__(
        self,
        group: Group,
        emit: Emitter,
        copies: dict[fx.Node, fx.Node],
        device: torch.device,
    ) -> None:
        self.order: fx.Node | None = None
        self.inverse: fx.Node | None = None
        self._emit = emit
        self._length = group.windows.tokens
        self._indexes: dict[tuple[bool, int, int], fx.Node] = {}
        name = f"toma_order_{group.index}"

        def table(entries: list[int] | tuple[int, ...], label: str) -> fx.Node:
            return emit.buffer(f"{name}_{label}", lambda: torch.tensor(entries, device=device))

        if group.positions is not None:
            at = group.positions
            place = (at.axis, at.columns, at.start, at.length)
            rows = emit.inline(coordinate_rows, copies[at.node], *place)
            curve = table(curve_table().tolist(), "curve")
            sequence = emit.inline(order_from_positions, rows, group.side, group.follows, curve)
            ranks = table(group.windows.slot_ranks(), "ranks")
            slots = table(group.windows.rank_slots(), "slots")
            self.order, self.inverse = emit.inline(slots_from_sequence, sequence, ranks, slots)
        elif group.order is not None:
            inverse = [0] * group.windows.tokens
            for slot, token in reversed(list(enumerate(group.order))):
                inverse[token] = slot
            self.order, self.inverse = table(group.order, "slots"), table(inverse, "inverse")

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
