"""The guard's nodes: find its inputs in the graph, and emit the phase of the plans."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from toma_fx.config import TomaConfig
from toma_fx.guard import COLD, FRESH, TALLY_SIZE, count_selection, decide, fingerprint
from toma_fx.operations import SELECT
from toma_fx.passes.find.region import Group
from toma_fx.passes.graph.emit import Emitter
from toma_fx.passes.graph.inputs import Inputs
from toma_fx.passes.graph.nodes import LINEARS, aten, shape
from toma_fx.passes.layouts.analysis import Analysis

_WAVES = (aten.sin.default, aten.cos.default)


@dataclass(frozen=True)
class GuardInputs:
    """Placeholders that the guard reads.

    Attributes:
        timestep: None where the graph shows none; every call then selects anew.
        latents: what a repeated timestep is compared by.
        conditioning: the other inputs that carry features.
        note: why there is no timestep.
    """

    timestep: fx.Node | None
    latents: tuple[fx.Node, ...] = ()
    conditioning: tuple[fx.Node, ...] = ()
    note: str = ""


def find_guard_inputs(analysis: Analysis, groups: list[Group], config: TomaConfig) -> GuardInputs:
    """The timestep is the input that feeds a sinusoidal embedding, by name where several do."""
    inputs = analysis.inputs
    varying = [p for p in analysis.graph.find_nodes(op="placeholder") if inputs.varying(p)]
    timestep, note = _timestep(varying, inputs, config.timestep_input)
    origins = {r.origin.node for group in groups for r in group.regions if r.origin is not None}
    features = [p for p in varying if inputs.is_feature(p) and p is not timestep]
    latents = tuple(p for p in features if p in origins or len(shape(p)) >= 4)
    conditioning = tuple(p for p in features if p not in latents)
    return GuardInputs(timestep, latents, conditioning, note)


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
        found = [p for p in clocks if "time" in input_name(p) or input_name(p) == "t"]
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


class Clock:
    """Emits the phase: decided by the guard, or always `SELECT` without a timestep."""

    def __init__(self, found: GuardInputs, groups: list[Group], config: TomaConfig) -> None:
        self._found = found
        self._config = config
        positions = {id(g.positions.node): g.positions.node for g in groups if g.positions}
        self._positions = tuple(positions.values())
        first = groups[0].regions[0].entry if groups else None
        self._device = first.meta["val"].device if first is not None else torch.device("cpu")

    def emit(self, emit: Emitter, copies: dict[fx.Node, fx.Node]) -> fx.Node:
        """The node of the phase, an int32 scalar on the device of the plans."""
        if self._found.timestep is None:
            tally = self._tally(emit)
            emit.call(aten.copy_.default, (tally, emit.inline(count_selection, tally)))
            return emit.buffer(
                "toma_phase", lambda: torch.tensor(SELECT, dtype=torch.int32, device=self._device)
            )
        conditioning = self._found.conditioning if "conditioning" in self._config.guard else ()
        latents = self._print(emit, self._found.latents, copies)
        extra = self._print(emit, conditioning, copies) if conditioning else None
        grid = (
            emit.inline(_flat, *(copies[p] for p in self._positions)) if self._positions else None
        )
        times = math.prod(shape(self._found.timestep))
        size = times + sum(shape(part)[0] for part in (latents, extra, grid) if part is not None)
        memory = emit.buffer("toma_guard_memory", lambda: torch.zeros(size, device=self._device))
        tally = self._tally(emit)
        timestep = self._here(emit, copies[self._found.timestep])
        phase, new_memory, new_tally = emit.inline(
            decide,
            memory,
            tally,
            timestep,
            latents,
            extra,
            grid,
            self._config.select_every,
            self._config.weigh_every,
        )
        emit.call(aten.copy_.default, (memory, new_memory))
        emit.call(aten.copy_.default, (tally, new_tally))
        return phase

    def _tally(self, emit: Emitter) -> fx.Node:
        return emit.buffer("toma_guard_tally", lambda: cold_tally(self._device))

    def _print(
        self, emit: Emitter, nodes: Iterable[fx.Node], copies: dict[fx.Node, fx.Node]
    ) -> fx.Node:
        here = [self._here(emit, copies[node]) for node in nodes]
        return emit.inline(_fingerprint_of, self._device, *here)

    def _here(self, emit: Emitter, node: fx.Node) -> fx.Node:
        """Schedulers keep timesteps on the host; the copy to the device does not wait."""
        if node.meta["val"].device == self._device:
            return node
        return emit.call(aten.to.device, (node, self._device, node.meta["val"].dtype, True))


def cold_tally(device: torch.device) -> Tensor:
    """The statistics before the first call."""
    tally = torch.zeros(TALLY_SIZE, dtype=torch.int64, device=device)
    tally[FRESH] = COLD
    return tally


def _fingerprint_of(device: torch.device, *tensors: Tensor) -> Tensor:
    return fingerprint(tensors) if tensors else torch.zeros(0, device=device)


def _flat(*positions: Tensor) -> Tensor:
    return torch.cat([ids.reshape(-1).float() for ids in positions])
