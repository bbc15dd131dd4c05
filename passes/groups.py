"""The nodes and buffers of one plan in the graph that is being built."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from toma_fx.config import TomaConfig
from toma_fx.merging import destination_rows, row_index, slots_from_sequence
from toma_fx.order import curve_table, order_from_positions
from toma_fx.passes.emit import Emitter
from toma_fx.passes.graphs import aten
from toma_fx.passes.region import Group


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
        config: TomaConfig,
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
            rows = emit.call(
                aten.slice.Tensor, (copies[at.node], 0, at.start, at.start + at.length)
            )
            curve = table(curve_table().tolist(), "curve")
            sequence = emit.inline(order_from_positions, rows, config.window, config.order, curve)
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


class GroupNodes:
    """A group's plan: buffers, the planning operation, and rows for tables.

    Attributes:
        windows: sizes of the plan.
        merging: node of `[B·W, d, n]`.
        unmerging: node of `[B·W, n, d]`.
    """

    def __init__(self, group: Group, order: OrderNodes, emit: Emitter, config: TomaConfig) -> None:
        self.windows = group.windows
        self.merging: fx.Node
        self.unmerging: fx.Node
        self._order = order
        self._group = group
        self._emit = emit
        self._config = config
        self._rows: fx.Node | None = None
        self._indexes: dict[tuple[int, int], fx.Node] = {}

    def prepare(self, entry: fx.Node, start: int, phase: fx.Node, ordered: bool) -> None:
        """Emit the plan; `ordered` says that the entry's tokens stand in window order already."""
        hidden = entry
        if self.windows.tokens != entry.meta["val"].shape[1]:
            stop = start + self.windows.tokens
            hidden = self._emit.call(aten.slice.Tensor, (entry, 1, start, stop))
        self._buffers(hidden.meta["val"])
        config = self._config
        arguments = (
            hidden,
            None if ordered else self._order.order,
            phase,
            self._destinations,
            self.merging,
            self.unmerging,
            config.temperature,
            config.unmerge,
            bool(config.cfg_pairs),
        )
        self._emit.call(torch.ops.toma_fx.plan_.default, arguments)

    def index(self, start: int, length: int, total: int) -> fx.Node:
        """`[B, L']` row index of tables over all tokens, the picture's at their destinations."""
        if self._rows is None:
            self._rows = self._emit.inline(
                destination_rows, self._destinations, self._order.order, self.windows.size
            )
        key = (start, total)
        if key not in self._indexes:
            after = total - start - length
            self._indexes[key] = self._emit.inline(row_index, self._rows, start, after, length)
        return self._indexes[key]

    def _buffers(self, hidden: Tensor) -> None:
        windows, batch, device = self.windows, int(hidden.shape[0]), hidden.device
        count, n, d = windows.count, windows.size, windows.destinations
        name = f"toma_plan_{self._group.index}"

        def zeros(*sizes: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(sizes, dtype=dtype, device=device)

        self._destinations = self._emit.buffer(
            f"{name}_destinations", lambda: zeros(batch, count, d, dtype=torch.int64)
        )
        self.merging = self._emit.buffer(
            f"{name}_merging", lambda: zeros(batch * count, d, n, dtype=hidden.dtype)
        )
        self.unmerging = self._emit.buffer(
            f"{name}_unmerging", lambda: zeros(batch * count, n, d, dtype=hidden.dtype)
        )
