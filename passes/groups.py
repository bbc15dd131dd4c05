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


class GroupNodes:
    """A group's plan: buffers, order, the planning operation, and rows for tables.

    Attributes:
        windows: sizes of the plan.
        merging: node of `[B·W, d, n]`; valid after `prepare`.
        unmerging: node of `[B·W, n, d]`.
        order: node of `[W·n]`, or None where slots are the tokens in sequence.
        inverse: node of `[N]`, likewise.
    """

    def __init__(self, group: Group, emit: Emitter, config: TomaConfig) -> None:
        self.windows = group.windows
        self.order: fx.Node | None = None
        self.inverse: fx.Node | None = None
        self._group = group
        self._emit = emit
        self._config = config
        self._ready = False
        self._rows: fx.Node | None = None
        self._indexes: dict[tuple[int, int], fx.Node] = {}

    def prepare(
        self, entry: fx.Node, start: int, phase: fx.Node, copies: dict[fx.Node, fx.Node]
    ) -> None:
        """Emit the plan at the first region's entry; later calls do nothing."""
        if self._ready:
            return
        self._ready = True
        hidden = entry
        windows = self.windows
        if windows.tokens != entry.meta["val"].shape[1]:
            hidden = self._emit.call(aten.slice.Tensor, (entry, 1, start, start + windows.tokens))
        self._order(copies, hidden.meta["val"].device)
        self._buffers(hidden.meta["val"])
        config = self._config
        self._emit.call(
            torch.ops.toma_fx.plan_.default,
            (
                hidden,
                self.order,
                phase,
                self._destinations,
                self.merging,
                self.unmerging,
                config.temperature,
                config.unmerge,
                bool(config.cfg_pairs),
            ),
        )

    def rows(self, start: int, length: int, total: int) -> fx.Node:
        """`[B, L']` row index of tables over all tokens, the picture's at their destinations."""
        if self._rows is None:
            self._rows = self._emit.inline(
                destination_rows, self._destinations, self.order, self.windows.size
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

        # Any slots are valid destinations; weights of zero would hide a plan that was never made.
        self._destinations = self._emit.buffer(
            f"{name}_destinations", lambda: zeros(batch, count, d, dtype=torch.int64)
        )
        self.merging = self._emit.buffer(
            f"{name}_merging", lambda: zeros(batch * count, d, n, dtype=hidden.dtype)
        )
        self.unmerging = self._emit.buffer(
            f"{name}_unmerging", lambda: zeros(batch * count, n, d, dtype=hidden.dtype)
        )

    def _order(self, copies: dict[fx.Node, fx.Node], device: torch.device) -> None:
        group, name = self._group, f"toma_plan_{self._group.index}"
        ranks, slots = self.windows.slot_ranks(), self.windows.rank_slots()

        def table(entries: list[int] | tuple[int, ...], label: str) -> fx.Node:
            return self._emit.buffer(f"{name}_{label}", lambda: torch.tensor(entries, device=device))

        if group.positions is not None:
            at = group.positions
            rows = self._emit.call(
                aten.slice.Tensor, (copies[at.node], 0, at.start, at.start + at.length)
            )
            config = self._config
            curve = table(curve_table().tolist(), "curve")
            sequence = self._emit.inline(
                order_from_positions, rows, config.window, config.order, curve
            )
            self.order, self.inverse = self._emit.inline(
                slots_from_sequence, sequence, table(ranks, "ranks"), table(slots, "slots")
            )
        elif group.order is not None:
            inverse = [0] * self.windows.tokens
            for slot, token in reversed(list(enumerate(group.order))):
                inverse[token] = slot
            self.order, self.inverse = table(group.order, "order"), table(inverse, "inverse")
