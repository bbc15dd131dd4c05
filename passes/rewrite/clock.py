"""The guard's nodes: find its inputs in the graph, and emit the phase of the plans."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

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
)
from toma_fx.operations import SELECT
from toma_fx.passes.find.region import Group
from toma_fx.passes.graph.emit import Emitter
from toma_fx.passes.graph.inputs import Inputs
from toma_fx.passes.graph.nodes import LINEARS, aten, shape
from toma_fx.passes.layouts.analysis import Analysis
from toma_fx.passes.methods import METHODS
from toma_fx.passes.methods.pace import USUAL, Computes, Pace
from toma_fx.passes.methods.slots import MOMENT, Moment

_WAVES = (aten.sin.default, aten.cos.default)


@dataclass(frozen=True)
class GuardInputs:
    """Placeholders that the guard reads.

    Attributes:
        timestep: None where the graph shows none; every call then selects anew.
        latents: what a repeated timestep is compared by: whatever is another at each step.
        conditioning: the other inputs that carry features.
        tables: inputs that carry none, masks and positions: conditioning as well, but for those
            that give the order of tokens, which are guarded by themselves.
        note: why there is no timestep.
        outside: whether the moment is told from outside then, instead of a first call each time.
    """

    timestep: fx.Node | None
    latents: tuple[fx.Node, ...] = ()
    conditioning: tuple[fx.Node, ...] = ()
    tables: tuple[fx.Node, ...] = ()
    note: str = ""
    outside: bool = False

    def told_apart(self, config: TomaConfig) -> tuple[fx.Node, ...]:
        """What must be the same for a slot to serve a call."""
        looked_at = self.timestep is not None and "conditioning" in config.guard
        return (*self.conditioning, *self.tables) if looked_at else ()

    def slots(self, config: TomaConfig) -> int:
        """How many conditionings are kept apart; 1 where none is looked at."""
        return config.slots if self.told_apart(config) else 1


def find_guard_inputs(analysis: Analysis, groups: list[Group], config: TomaConfig) -> GuardInputs:
    """The timestep is the input that feeds a sinusoidal embedding, by name where several do.

    Conditioning stays the same from the first step of a picture to its last. What does not is told
    by the graph: pictures, residuals of a control network that are added to the stream as they are,
    a second time. A control network's own picture is among the latents, which costs nothing.
    """
    inputs = analysis.inputs
    varying = [p for p in analysis.graph.find_nodes(op="placeholder") if inputs.varying(p)]
    timestep, note = _timestep(varying, inputs, config.timestep_input)
    origins = {r.origin.node for group in groups for r in group.regions if r.origin is not None}
    others = [p for p in varying if p is not timestep and isinstance(p.meta.get("val"), Tensor)]
    features = [p for p in others if inputs.is_feature(p)]
    moving = {p for p in features if p in origins or len(shape(p)) >= 4}
    moving |= {p for p in others if _joins_stream(p, inputs)}
    places = {g.positions.node for g in groups if g.positions is not None}
    if timestep is not None:
        moving |= {p for p in others if _named_time(p) and _is_clock(p, inputs)}
    return GuardInputs(
        timestep,
        latents=tuple(p for p in others if p in moving),
        conditioning=tuple(p for p in features if p not in moving),
        tables=tuple(p for p in others if p not in moving and p not in (*features, *places)),
        note=note,
    )


def shows_step(analysis: Analysis, config: TomaConfig) -> bool:
    """Whether a graph has a timestep, so that it is a denoiser's."""
    inputs = analysis.inputs
    varying = [p for p in analysis.graph.find_nodes(op="placeholder") if inputs.varying(p)]
    return _timestep(varying, inputs, config.timestep_input)[0] is not None


def input_name(placeholder: fx.Node) -> str:
    """The name that a user knows: `timestep` for Dynamo's `L['kwargs']['timestep']`.

    An argument that is passed on by place has none but its place: `args[3]`.
    """
    source = getattr(placeholder, "_dynamo_source", None)
    name = getattr(source, "name", placeholder.name)
    name = str(name() if callable(name) else name)
    *outer, last = re.findall(r"[^\[\]'\".]+", name)
    return f"{outer[-1]}[{last}]" if last.isdigit() and outer else last


def _timestep(
    varying: list[fx.Node], inputs: Inputs, wanted: str | None
) -> tuple[fx.Node | None, str]:
    if wanted is not None:
        named = [p for p in varying if wanted in (input_name(p), p.name, p.target)]
        if named:
            return named[0], ""
        known = ", ".join(input_name(p) for p in varying)
        return None, f"timestep_input={wanted!r} is no input ({known}): every call selects anew"
    clocks = [p for p in varying if _is_clock(p, inputs) and "guidance" not in input_name(p)]
    found = clocks
    if len(clocks) > 1:
        found = [p for p in clocks if _named_time(p)]
    if len(found) == 1:
        return found[0], ""
    note = "no single timestep input in the graph: every call selects anew"
    if found := found or clocks:
        names = ", ".join(input_name(p) for p in found)
        note += f"; name one with timestep_input ({names})"
    return None, note


def _is_clock(placeholder: fx.Node, inputs: Inputs) -> bool:
    """A scalar, or one number per item, whose sine and cosine feed a linear."""
    if len(shape(placeholder)) > 1 or not isinstance(placeholder.meta.get("val"), Tensor):
        return False
    stack, seen, waves = [placeholder], set(), set()
    while stack:
        node = stack.pop()
        for user in node.users:
            if user in seen or not inputs.depends_only_on(user, placeholder):
                continue
            seen.add(user)
            if user.target in _WAVES:
                waves.add(user.target)
            if user.target in LINEARS and waves:
                return True
            stack.append(user)
    return False


def _named_time(placeholder: fx.Node) -> bool:
    return "time" in input_name(placeholder) or input_name(placeholder) == "t"


def _joins_stream(placeholder: fx.Node, inputs: Inputs) -> bool:
    """Whether tokens `[B, L, C]` are added to activations before anything learned reads them."""
    if len(shape(placeholder)) < 3:
        return False
    stack, seen = [placeholder], {placeholder}
    while stack:
        for user in stack.pop().users:
            if user in seen:
                continue
            seen.add(user)
            if user.target is aten.add.Tensor and any(map(inputs.is_activation, user.args[:2])):
                return True
            if inputs.depends_only_on(user, placeholder) and not inputs.is_activation(user):
                stack.append(user)
    return False


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
            after = emit.inline(_unless, fresh, *state, *after)
        for buffer, value in zip(state, after, strict=True):
            emit.call(aten.copy_.default, (buffer, value))
        return Moment(phase, step, fresh, slot if slots > 1 else None, slots, self._pace)

    def _told(self, emit: Emitter) -> Moment:
        """Every owner, or run of owners, compares with what it has seen (`guard.notice`)."""
        slots = self._config.slots if "conditioning" in self._config.guard else 1
        kept = "memory" if METHODS[self._config.method].remembers else "plan"
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
        return Moment(phase, step, fresh, slot, slots, self._pace)

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


def _unless(fresh: Tensor, *state: Tensor) -> list[Tensor]:
    """The state after a call; as it was before where the call is fresh."""
    half = len(state) // 2
    return [torch.where(fresh, *both) for both in zip(state[:half], state[half:], strict=True)]
