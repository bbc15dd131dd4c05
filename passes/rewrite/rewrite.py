"""Pass 5: build the merged graph. The only pass that edits, and it edits a copy.

Before: `x → norm → linear … linear → add(x)` on `[B, N, C]`. After:

    x → gather(order)                                                once a stage
    plan_(norm, phase, destinations, merging, unmerging)             once a group
    norm → merge → linear … linear → unmerge → add(x)                on [B, D, C] in between

Why a replay: every node of a region is called again on merged fake values, so that a view that
cannot be taken, or a result of another shape than its layout says, shows here and not in a picture.

Three pieces: the walk over the plain graph, here; the streams at full length and their orders
(`full_length`); what regions become (`merged`, and `paced` where a method remembers).

Precondition: `plan` and `hoist` have run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode

from toma_fx.config import TomaConfig
from toma_fx.errors import CannotRewrite
from toma_fx.passes.find.region import Group
from toma_fx.passes.graph.emit import Emitter
from toma_fx.passes.graph.metadata import keep_metadata
from toma_fx.passes.graph.nodes import map_leaves, strides
from toma_fx.passes.methods import METHODS
from toma_fx.passes.methods.pace import USUAL, Pace
from toma_fx.passes.plan.hoist import Stage
from toma_fx.passes.rewrite.clock import Clock
from toma_fx.passes.rewrite.equal import share_equal_nodes
from toma_fx.passes.rewrite.expect import restrided, viewed
from toma_fx.passes.rewrite.full_length import FullLength
from toma_fx.passes.rewrite.guard_inputs import GuardInputs
from toma_fx.passes.rewrite.merged import MergedRegions
from toma_fx.passes.rewrite.paced import REGIONS
from toma_fx.strides import settled


def rewrite(
    gm: fx.GraphModule,
    groups: list[Group],
    stages: list[Stage],
    guard: GuardInputs,
    config: TomaConfig,
    pace: Pace = USUAL,
    runs: bool = True,
) -> fx.GraphModule:
    """A new graph module whose regions run on merged tokens; `gm` is not modified.

    Args:
        gm: the normalised graph.
        groups: from `plan`.
        stages: from `hoist`.
        guard: the inputs that the guard reads.
        config: temperature, unmerge, schedule.
        pace: what it computes of its regions; other than the usual only for methods that remember.
        runs: whether it will be run, and not only be looked at.

    Raises:
        RegionRefused: the replay of a region contradicts its proof.
    """
    graph = fx.Graph()
    result = fx.GraphModule(torch.nn.Module(), graph)
    values = [node.meta.get("val") for node in gm.graph.nodes]
    mode = detect_fake_mode(values) or FakeTensorMode(allow_non_fake_inputs=True)
    emit = Emitter(result, graph, mode, runs)
    full = FullLength(emit, stages)
    regions = REGIONS[pace.computes](emit, full, groups, config)
    plans_last = any(METHODS[group.method].stateful for group in groups)
    clock = Clock(guard, groups, config, pace) if plans_last else None
    _Walk(gm, emit, full, regions, clock).run()
    share_equal_nodes(graph)
    graph.eliminate_dead_code()
    result.recompile()
    keep_metadata(gm, result)
    return result


class _Walk:
    """Each node of the plain graph in turn: into a region, into window order, or copied.

    Args:
        gm: the plain graph.
        emit: where nodes go.
        full: the new nodes at full length.
        regions: the new nodes on merged tokens.
        clock: emits the phase of the plans; None where no plan outlives a call.
    """

    def __init__(
        self,
        gm: fx.GraphModule,
        emit: Emitter,
        full: FullLength,
        regions: MergedRegions,
        clock: Clock | None,
    ) -> None:
        self._gm = gm
        self._emit = emit
        self._full = full
        self._regions = regions
        self._clock = clock

    def run(self) -> None:
        for node in self._gm.graph.nodes:
            if node.op in ("get_attr", "call_module"):
                setattr(self._emit.root, node.target, getattr(self._gm, node.target))
            if node.op != "placeholder" and self._clock and self._regions.moment is None:
                self._regions.moment = self._clock.emit(self._emit, self._full.natural)
            if node in self._regions:
                if self._regions.exists_twice(node):
                    self._full.write(node, self._copied(node))
                self._regions.add(node)
            elif self._full.is_carried(node):
                self._full.carry(node)
            elif node.op == "output":
                self._emit.graph.output(map_leaves(node.args[0], self._returned))
            else:
                self._full.write(node, self._copied(node))

    def _copied(self, node: fx.Node) -> fx.Node:
        """A node outside of regions; evaluated again where an operand's strides have changed."""
        sources = node.all_input_nodes if node.op == "call_function" else []
        if all(strides(self._full.read(source)) == strides(source) for source in sources):
            return self._emit.graph.node_copy(node, self._full.read)
        args = map_leaves(node.args, self._operand)
        kwargs = map_leaves(dict(node.kwargs), self._operand)
        try:
            return self._emit.call(node.target, args, kwargs, like=node)
        except Exception as error:
            raise CannotRewrite(f"needs the strides of the plain model: {error}", node) from error

    def _operand(self, item: Any) -> Any:
        return self._full.read(item) if isinstance(item, fx.Node) else item

    def _returned(self, item: Any) -> Any:
        """A result, in the strides of the plain model's: what reads it may take views of it.

        Those that mean nothing are settled: blocks of one list hand on a tensor of their own, or
        their part of a longer stream, and Dynamo would compile the next block anew for that.
        """
        full = self._operand(item)
        plain = item.meta.get("val") if isinstance(item, fx.Node) else None
        if not isinstance(plain, torch.Tensor):
            return full
        if strides(full) != strides(item):
            return self._emit.inline(restrided, full, settled(plain), like=item)
        if full.meta["val"].stride() == settled(plain):
            return full
        return self._emit.inline(viewed, full, like=item)
