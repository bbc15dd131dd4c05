"""The inputs of a graph that the guard reads: what tells steps, pictures and prompts apart.

Read-only; `clock` writes the nodes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor, fx

from toma_fx.config import TomaConfig
from toma_fx.passes.find.region import Group
from toma_fx.passes.graph.inputs import Inputs
from toma_fx.passes.graph.nodes import LINEARS, aten, shape
from toma_fx.passes.layouts.analysis import Analysis

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
