"""Regions in graphs of another pace: all computed and remembered, or none and predicted.

Before, on `[B, D, C]`: `merge → linear … linear → unmerge → add(x)`. After, dense and resting:

    d = linear … linear;  memory ← d;  add(x, d)          on [B, N, C], as in the plain graph
    add(x, predicted(memory))                             what only the region reads is gone

Text that sees the picture in a region is remembered and predicted where it leaves.
"""

from __future__ import annotations

from torch import fx

from toma_fx.passes.find.region import Region
from toma_fx.passes.graph.nodes import aten
from toma_fx.passes.layouts.layout import TokenLayout
from toma_fx.passes.methods.base import MemoryPlan
from toma_fx.passes.methods.pace import Computes
from toma_fx.passes.rewrite.expect import picture_of
from toma_fx.passes.rewrite.merged import MergedRegions, leaves


class _PacedRegions(MergedRegions):
    """The plan of a region is made where it begins; what follows differs."""

    def _add(self, node: fx.Node, region: Region) -> None:
        self._prepare(region, self._full.read(region.entry), picture_of(region.layout)[0], False)
        if region.steps[node].exit is not None or node is region.end:
            self._end(node, region)
        elif leaves(node, region):
            self._text(node, region)

    def _end(self, node: fx.Node, region: Region) -> None:
        """An exit, or the end of a scope."""
        raise NotImplementedError

    def _text(self, node: fx.Node, region: Region) -> None:
        """Text that others read."""
        raise NotImplementedError

    def _memory(self, region: Region) -> MemoryPlan:
        plan = self._plan(region)
        assert isinstance(plan, MemoryPlan)
        return plan

    def _start(self, node: fx.Node, region: Region) -> int:
        """Where the picture begins in what is added at an exit, or at the end of a scope."""
        exit = region.steps[node].exit
        layout = region.layout if exit is None else region.steps[region.added[node][0]].layout
        assert isinstance(layout, TokenLayout)
        return picture_of(layout)[0]


class DenseRegions(_PacedRegions):
    """Regions as in the plain graph, whose results are remembered."""

    def exists_twice(self, node: fx.Node) -> bool:
        return True

    def _end(self, node: fx.Node, region: Region) -> None:
        exit = region.steps[node].exit
        if exit is None:
            operands = (self._full.read(node), self._full.read(region.entry))
            change = self._emit.call(aten.sub.Tensor, operands)
        else:
            change = self._full.read(region.added[node][0])
        self._memory(region).learn(change, self._start(node, region))

    def _text(self, node: fx.Node, region: Region) -> None:
        self._memory(region).learn_text(self._full.read(node))


class RestingRegions(_PacedRegions):
    """Nothing of a region, but what its exits and its text are predicted to be."""

    def _end(self, node: fx.Node, region: Region) -> None:
        stream = region.residual(node)
        assert stream is not None
        exit, target, more = region.steps[node].exit, aten.add.Tensor, ()
        computed, *gates = (node,) if exit is None else region.added[node]
        change = self._memory(region).predict(computed, self._start(node, region))
        change = self._gated(change, computed, gates)
        if exit is not None:
            target, more = node.target, node.args[2:]
        operands = (change, self._full.read(stream))
        args = operands if exit == 0 else operands[::-1]
        new = self._emit.call(target, (*args, *more), node.kwargs if more else None, like=node)
        self._return(node, new, False, "prediction")

    def _text(self, node: fx.Node, region: Region) -> None:
        self._full.write(node, self._memory(region).predict_text(node))


REGIONS: dict[Computes, type[MergedRegions]] = {
    Computes.SHARE: MergedRegions,
    Computes.ALL: DenseRegions,
    Computes.NONE: RestingRegions,
}
