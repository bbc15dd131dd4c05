"""The guard's nodes: what is due at a call, decided or told."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, fx

from toma_fx.config import TomaConfig
from toma_fx.fingerprint import fingerprint, samples
from toma_fx.guard import (
    SLOT_SIZE,
    cold_tally,
    count_selection,
    decide,
    notice,
    unless,
)
from toma_fx.operations import SELECT
from toma_fx.passes.find.region import Group
from toma_fx.passes.graph.emit import Emitter
from toma_fx.passes.graph.nodes import aten
from toma_fx.passes.methods import METHODS
from toma_fx.passes.methods.pace import USUAL, Computes, Pace
from toma_fx.passes.methods.slots import MOMENT, Moment
from toma_fx.passes.rewrite.guard_inputs import GuardInputs


class Clock:
    """Emits the moment: decided by the guard, or told from outside where there is no timestep.

    Where nobody is outside to tell it, as in an export, each call is a first one.

    A call that computes nothing never begins anything: it is only made where whoever knows the
    step knows that too. Should no slot know it all the same, it leaves the guard as it was.
    """

    def __init__(
        self, found: GuardInputs, groups: list[Group], config: TomaConfig, pace: Pace = USUAL
    ) -> None:
        self._found = found
        self._pace = pace
        self._config = config
        positions = {id(g.positions.node): g.positions.node for g in groups if g.positions}
        self._positions = tuple(positions.values())
        first = groups[0].regions[0].entry if groups else None
        self._device = first.meta["val"].device if first is not None else torch.device("cpu")

    def emit(self, emit: Emitter, copies: dict[fx.Node, fx.Node]) -> Moment:
        """The nodes that say what is due, on the device of the plans."""
        found, config = self._found, self._config
        if found.timestep is None:
            return self._told(emit) if found.outside else self._always(emit)

        def here(nodes: Iterable[fx.Node]) -> list[fx.Node]:
            return [self._here(emit, copies[node]) for node in nodes]

        latents, conditioning = here(found.latents), here(found.told_apart(config))

        def read(how: Callable[..., Tensor], nodes: list[fx.Node]) -> fx.Node | None:
            return emit.inline(how, *nodes) if nodes else None

        parts = [
            *here((found.timestep,)),
            read(_samples, latents),
            read(_fingerprint, latents),
            read(_fingerprint, conditioning),
            read(_fingerprint, here(self._positions)),
        ]
        size = sum(part.meta["val"].numel() for part in parts if part is not None)
        slots = found.slots(config)
        state = (
            emit.buffer("toma_guard_memory", lambda: self._zeros(slots, size)),
            emit.buffer("toma_guard_slots", lambda: self._zeros(slots, SLOT_SIZE).long()),
            self._tally(emit),
        )
        schedule = (config.select_every, config.weigh_every, "turns" in config.guard)
        rests = self._pace.computes is Computes.NONE
        how = (*schedule, rests, "rises" in config.guard)
        phase, step, fresh, slot, *after = emit.inline(decide, *state, *parts, *how)
        if rests:
            after = emit.inline(unless, fresh, *state, *after)
        for buffer, value in zip(state, after, strict=True):
            emit.call(aten.copy_.default, (buffer, value))
        return Moment(phase, step, fresh, slot if slots > 1 else None, slots, self._pace)

    def _told(self, emit: Emitter) -> Moment:
        """Every owner, or run of owners, compares with what it has seen (`guard.notice`)."""
        slots = self._config.slots if "conditioning" in self._config.guard else 1
        remembers = METHODS[self._config.method].remembers
        kept = "memory" if remembers else "plan"
        seen = emit.buffer(f"toma_{kept}_seen", lambda: self._zeros(slots, 3).long())
        tally = self._tally(emit)
        nobody = (-1, -1, -1, 0)
        told = emit.buffer(f"{MOMENT}told", lambda: torch.tensor(nobody, device=self._device))
        slot = emit.buffer(f"{MOMENT}slot", lambda: self._zeros(1).long()) if slots > 1 else None
        phase, step, fresh, row, counted = emit.inline(notice, seen, tally, told, slot)
        row = emit.call(aten.unsqueeze.default, (row, 0))
        if slot is None:
            emit.call(aten.copy_.default, (seen, row))
        else:
            emit.call(aten.index_copy_.default, (seen, 0, slot, row))
        emit.call(aten.copy_.default, (tally, counted))
        number = emit.buffer(f"{MOMENT}call", lambda: self._zeros().long()) if remembers else None
        return Moment(phase, step, fresh, slot, slots, self._pace, number)

    def _always(self, emit: Emitter) -> Moment:
        tally = self._tally(emit)
        emit.call(aten.copy_.default, (tally, emit.inline(count_selection, tally)))

        def scalar(name: str, value: int, dtype: torch.dtype) -> fx.Node:
            return emit.buffer(name, lambda: torch.tensor(value, dtype=dtype, device=self._device))

        return Moment(
            phase=scalar("toma_phase", SELECT, torch.int32),
            step=scalar("toma_step", 0, torch.int64),
            fresh=scalar("toma_fresh", True, torch.bool),
            pace=self._pace,
        )

    def _tally(self, emit: Emitter) -> fx.Node:
        return emit.buffer("toma_guard_tally", lambda: cold_tally(self._device))

    def _zeros(self, *sizes: int) -> Tensor:
        return torch.zeros(sizes, device=self._device)

    def _here(self, emit: Emitter, node: fx.Node) -> fx.Node:
        """Schedulers keep timesteps on the host; the copy to the device does not wait."""
        if node.meta["val"].device == self._device:
            return node
        return emit.call(aten.to.device, (node, self._device, node.meta["val"].dtype, True))


def _samples(*tensors: Tensor) -> Tensor:
    return samples(tensors)


def _fingerprint(*tensors: Tensor) -> Tensor:
    return fingerprint(tensors)
