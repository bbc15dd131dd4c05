"""Seconds of a region, plain and merged, compiled and timed alone.

Why: a prediction knows rates, not kernels. One region stands for its class, the regions of one
kind, size and shape: a model of hundreds of regions has a handful of classes.

The region is cut out of the normalised graph with its proof, so that nothing is found twice;
inputs are random numbers of the right shapes. Its token order is left out: the gathers are hoisted
out of regions anyway.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch._guards import tracing

from toma_fx.config import TomaConfig
from toma_fx.operations import REUSE
from toma_fx.passes.find.region import Forecast, Group, Region
from toma_fx.passes.graph.nodes import is_tensor, map_leaves, shape
from toma_fx.passes.layouts.layout import AtDestinations, Step
from toma_fx.passes.methods import METHODS
from toma_fx.passes.rewrite.guard_inputs import GuardInputs
from toma_fx.passes.rewrite.rewrite import rewrite
from toma_fx.timing import interleaved
from toma_fx.windows import Windows

ROUNDS = 9


class Autotuner:
    """Measures the first region of each class; the others of the class take its numbers."""

    def __init__(self, config: TomaConfig) -> None:
        self._config = config
        self._known: dict[object, Forecast] = {}

    def __call__(self, region: Region, windows: Windows) -> Forecast:
        """Both sides of merging a region.

        Raises:
            CannotRewrite: the region cannot be rewritten.
        """
        key = (*region_class(region), windows)
        if key not in self._known:
            self._known[key] = _measured(region, windows, self._config)
        return self._known[key]


def region_class(region: Region) -> tuple[object, ...]:
    """What regions have in common that cost the same."""
    value = region.entry.meta["val"]
    assert region.layout is not None
    targets = tuple(str(node.target) for node in region.anchors)
    sizes = tuple(shape(node) for node in region.anchors)
    return (region.kind, tuple(value.shape), value.dtype, region.layout.segments, targets, sizes)


def _measured(region: Region, windows: Windows, config: TomaConfig) -> Forecast:
    plain, twin, sources = _cut_out(region)
    group = Group(0, windows, config.method, regions=[twin])
    twin.group = group
    merged = rewrite(plain, [group], [], GuardInputs(None), config)
    inputs = [_random(source) for source in sources]
    runs = [_compiled(gm, inputs) for gm in (plain, merged)]
    for run in runs:
        run()
    if METHODS[config.method].stateful:
        merged.toma_phase.fill_(REUSE)  # planning is counted apart: it is shared and reused
    found = interleaved(dict(zip("01", runs, strict=True)), ROUNDS, inputs[0].device)
    before, after = map(statistics.median, found.values())
    return Forecast(before, after, "measured")


def _cut_out(region: Region) -> tuple[fx.GraphModule, Region, list[fx.Node]]:
    """The region as a graph of its own, its twin in it, and what its placeholders stand for."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    sources = [s for s in _outside(region) if is_tensor(s)]
    for source in sources:
        copies[source] = graph.placeholder(source.name)
        copies[source].meta["val"] = source.meta["val"]
    for node in region.steps:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    left = [n for n in region.steps if is_tensor(n) and _leaves(n, region)]
    graph.output(tuple(copies[node] for node in left))
    gm = fx.GraphModule(torch.nn.Module(), graph)

    def moved(item: Any) -> Any:
        if isinstance(item, AtDestinations):
            return dataclasses.replace(item, table=moved(item.table))
        return copies[item] if isinstance(item, fx.Node) else item

    def step(old: Step) -> Step:
        return dataclasses.replace(
            old, args=map_leaves(old.args, moved), kwargs=map_leaves(old.kwargs, moved)
        )

    steps = {copies[node]: step(old) for node, old in region.steps.items()}
    seeds = tuple(copies[seed] for seed in region.seeds)
    added = {
        copies[exit]: tuple(copies[node] for node in path) for exit, path in region.added.items()
    }
    moves = {"entry": copies[region.entry], "seeds": seeds, "steps": steps, "added": added}
    twin = dataclasses.replace(region, **moves, scope=None)
    return gm, twin, sources


def _outside(region: Region) -> list[fx.Node]:
    """What the region reads, in a fixed order."""
    found = {source: None for node in region.steps for source in node.all_input_nodes}
    return [source for source in found if source not in region.steps]


def _leaves(node: fx.Node, region: Region) -> bool:
    """Whether the rest of the graph reads a node at full length."""
    step = region.steps[node]
    outside = any(user not in region.steps for user in node.users)
    return step.exit is not None or (step.layout is None and outside)


def _random(source: fx.Node) -> torch.Tensor:
    value: torch.Tensor = source.meta["val"]
    sizes = shape(source)
    if value.is_floating_point():
        return torch.randn(sizes, dtype=value.dtype, device=value.device)
    return torch.ones(sizes, dtype=value.dtype, device=value.device)


def _compiled(gm: fx.GraphModule, inputs: Sequence[torch.Tensor]) -> Callable[[], Any]:
    """Outside of the compile that is going on: its fake tensors are none of these."""
    from torch._inductor.compile_fx import compile_fx

    with tracing(None):
        compiled = compile_fx(gm, list(inputs))
    return lambda: compiled(*inputs)
