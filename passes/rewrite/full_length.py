"""The nodes of the new graph at full length: in natural order, in window order, or in both.

A stage keeps a stream in window order (`plan.hoist`). What reads it there gets it so, what wants
the natural order gets it back: each order of a node is made once, where it is first needed.
"""

from __future__ import annotations

import torch
from torch import fx

from toma_fx.errors import CannotRewrite
from toma_fx.merging import gather_rows
from toma_fx.passes.find.region import Group
from toma_fx.passes.graph.emit import Emitter
from toma_fx.passes.graph.nodes import facts
from toma_fx.passes.layouts.layout import AtDestinations, TokenLayout
from toma_fx.passes.methods.order_nodes import OrderNodes
from toma_fx.passes.plan.hoist import Stage
from toma_fx.passes.rewrite.expect import picture_of
from toma_fx.passes.rewrite.replay import replay


class FullLength:
    """Plain nodes to new ones that hold all tokens.

    Args:
        emit: where nodes go.
        stages: from `hoist`.

    Attributes:
        natural: the new nodes in natural order, as far as they have been made.
    """

    def __init__(self, emit: Emitter, stages: list[Stage]) -> None:
        self.natural: dict[fx.Node, fx.Node] = {}
        self._ordered: dict[fx.Node, fx.Node] = {}
        self._emit = emit
        self._starts = {stage.start: stage for stage in stages}
        self._stage = {node: stage for stage in stages for node in (*stage.layouts, *stage.steps)}
        self._orders: dict[object, OrderNodes] = {}

    def __contains__(self, node: fx.Node) -> bool:
        """Whether a node has been made, in either order."""
        return node in self.natural or node in self._ordered

    def read(self, node: fx.Node, ordered: bool = False) -> fx.Node:
        """A node in natural order, put back into it where it has none yet; or in window order."""
        if ordered:
            return self._ordered[node]
        if node not in self.natural:
            self.natural[node] = self._permuted(node, self._stage[node], back=True)
        return self.natural[node]

    def write(self, node: fx.Node, new: fx.Node, ordered: bool = False) -> None:
        """Keep what a node has become; where a stage starts, in window order as well."""
        (self._ordered if ordered else self.natural)[node] = new
        if node in self._starts and not ordered:
            self._ordered[node] = self._permuted(node, self._starts[node], back=False)

    def is_ordered(self, node: fx.Node) -> bool:
        """Whether a node is there in window order."""
        return node in self._ordered

    def stays_ordered(self, residual: fx.Node, result: fx.Node) -> bool:
        """Whether what is added to a residual stream stays in window order."""
        return residual in self._ordered and result in self._stage

    def is_carried(self, node: fx.Node) -> bool:
        """Whether a node outside of regions runs in window order."""
        return node in self._stage and node not in self._starts

    def carry(self, node: fx.Node) -> None:
        """Run a node outside of regions on the stream in window order."""
        stage = self._stage[node]
        step = stage.steps[node]

        def operand(item: fx.Node) -> fx.Node:
            return self.read(item, self.is_ordered(item))

        def table(item: AtDestinations, rows: fx.Node) -> fx.Node:
            layout = TokenLayout(0, None, item.segments)
            order = self.order(stage.group, rows.meta["val"].device)
            return order.index(False, picture_of(layout)[0], layout.length)

        found = replay(self._emit, node, step, operand, table, lambda segment: segment.length)
        if facts(found) != facts(node):
            raise CannotRewrite(f"in window order {node.name} has another shape", node)
        self.write(node, found, ordered=step.layout is not None)  # text has one order

    def order(self, group: Group, device: torch.device) -> OrderNodes:
        """The nodes of a group's token order; groups of one order share them."""
        key = (group.windows, group.order, group.positions)
        if key not in self._orders:
            self._orders[key] = OrderNodes(group, self._emit, self.natural, device)
        return self._orders[key]

    def _permuted(self, node: fx.Node, stage: Stage, back: bool) -> fx.Node:
        layout = stage.layouts[node]
        source = self.read(node, ordered=back)
        start, _ = picture_of(layout)
        order = self.order(stage.group, source.meta["val"].device)
        index = order.index(back, start, layout.length)
        new: fx.Node = self._emit.inline(
            gather_rows, source, index, layout.axis, None, 0, like=node
        )
        return new
