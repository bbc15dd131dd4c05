"""What a method needs in order to remember: the moment of a call, and a tensor for each slot.

The guard (`toma_fx.guard`) keeps what is made under one conditioning apart from what is made under
another, in slots. A method that keeps something between calls keeps it in `SlotBuffer`s, and learns
from the `Moment` which slot a call uses and whether that starts from nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, fx

from toma_fx.passes.graph.emit import Emitter
from toma_fx.passes.graph.nodes import aten
from toma_fx.passes.methods.pace import USUAL, Pace

MOMENT = "toma_moment_"
"""Names of what tells a graph the moment from outside begin so."""


@dataclass(frozen=True)
class Moment:
    """What the guard says of a call, as nodes on the device of the plans.

    Attributes:
        phase: int32 scalar, what is due: `operations.REUSE`, `WEIGH` or `SELECT`.
        step: int64 scalar, calls by which the slot's generation has moved on, 0 at its first. The
            very same call again leaves it.
        fresh: bool scalar, the slot starts from nothing: whatever its buffers hold, another
            picture's values or NaN, must not reach a result.
        slot: int64 `[1]`, which slot the call uses; None where there is one.
        slots: how many there are.
        pace: what the graph computes of a call.
        call: int64 scalar, how many calls of the slot came before since its generation began, where
            that is told from outside: a part that is left out of some cannot count them. None
            where the graph sees them all.
    """

    phase: fx.Node
    step: fx.Node
    fresh: fx.Node
    slot: fx.Node | None = None
    slots: int = 1
    pace: Pace = USUAL
    call: fx.Node | None = None


class _Slots:
    """What both kinds keep of the guard: which slot a call uses, or None where there is one."""

    PREFIXES = ("toma_plan_", "toma_memory_")

    def __init__(
        self,
        emit: Emitter,
        name: str,
        moment: Moment,
        sizes: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        assert name.startswith(self.PREFIXES), f"{name}: streams would not park it"
        self._emit = emit
        self._slot = moment.slot
        self._make(name, moment.slots, partial(torch.zeros, dtype=dtype, device=device), sizes)

    def _make(
        self, name: str, slots: int, zeros: Callable[..., Tensor], sizes: tuple[int, ...]
    ) -> None:
        """Buffers of zeros for so many slots."""
        raise NotImplementedError


class SlotBuffer(_Slots):
    """A tensor of zeros for each slot, in one buffer of the graph; a call sees that of its slot.

    Streams park every buffer whose name starts with one of `PREFIXES`. With one slot nothing is
    emitted beside the buffer itself. With more, what Inductor makes of it moves the bytes of one:
    writing stores into the buffer in place, fused with what computes the value; reading fuses with
    what comes next, but for products of matrices, which read a copy (one launch).

    Attributes:
        node: `[S, *sizes]`, or `sizes` with one slot; for operations that find the slot themselves.
    """

    def _make(
        self, name: str, slots: int, zeros: Callable[..., Tensor], sizes: tuple[int, ...]
    ) -> None:
        whole = sizes if self._slot is None else (slots, *sizes)
        self.node = self._emit.buffer(name, lambda: zeros(whole), kept=True)

    def read(self) -> fx.Node:
        """A node of `sizes`: what the slot holds here in the graph."""
        if self._slot is None:
            return self.node
        rows = self._emit.call(aten.index_select.default, (self.node, 0, self._slot))
        return self._emit.call(aten.squeeze.dim, (rows, 0))

    def write(self, value: fx.Node) -> None:
        """Put `sizes` into the slot, in place."""
        if self._slot is None:
            self._emit.call(aten.copy_.default, (self.node, value))
            return
        row = self._emit.call(aten.unsqueeze.default, (value, 0))
        self._emit.call(aten.index_copy_.default, (self.node, 0, self._slot, row))


class SlotTensors(_Slots):
    """As `SlotBuffer`, but a buffer for each slot, all of which a call reads and writes.

    For large tensors that elementwise kernels read and write anyway. Which slot is a matter of
    values here and not of addresses, so that Inductor fuses both with what is around: two kernels
    of an exit instead of five. Traffic grows with the slots, and beyond three is more.
    """

    def _make(
        self, name: str, slots: int, zeros: Callable[..., Tensor], sizes: tuple[int, ...]
    ) -> None:
        self._nodes = [
            self._emit.buffer(f"{name}_{slot}", lambda: zeros(sizes), kept=True)
            for slot in range(slots)
        ]

    def read(self) -> fx.Node:
        """A node of the tensor's sizes: what the slot holds."""
        if self._slot is None:
            return self._nodes[0]
        found: fx.Node = self._emit.inline(_of_slot, self._slot, *self._nodes)
        return found

    def write(self, value: fx.Node) -> None:
        """Put a value into the slot, in place."""
        for number, node in enumerate(self._nodes):
            new = value
            if self._slot is not None:
                new = self._emit.inline(_at_slot, self._slot, number, value, node)
            self._emit.call(aten.copy_.default, (node, new))


def _of_slot(slot: Tensor, *held: Tensor) -> Tensor:
    found = held[0]
    for number, other in enumerate(held[1:], 1):
        found = torch.where(slot == number, other, found)
    return found


def _at_slot(slot: Tensor, number: int, value: Tensor, held: Tensor) -> Tensor:
    return torch.where(slot == number, value, held)
