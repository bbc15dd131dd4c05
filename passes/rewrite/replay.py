"""Calling a node of the plain graph again, on operands of other lengths or in another order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from toma_fx.merging import gather_rows
from toma_fx.passes.graph.emit import Emitter
from toma_fx.passes.graph.nodes import map_leaves
from toma_fx.passes.layouts.layout import AtDestinations, Segment, Step, TokenCount


def replay(
    emit: Emitter,
    node: fx.Node,
    step: Step,
    operand: Callable[[fx.Node], fx.Node],
    table: Callable[[AtDestinations, fx.Node], fx.Node],
    length: Callable[[Segment], int],
) -> fx.Node:
    """What a node becomes by its step.

    Args:
        emit: appends the call.
        node: of the plain graph.
        step: which arguments it gets instead of its own.
        operand: the new node of a given one.
        table: the rows to take of a position table, given it and its new node.
        length: tokens of a segment.
    """

    def leaf(item: Any) -> Any:
        if isinstance(item, fx.Node):
            return operand(item)
        if isinstance(item, TokenCount):
            return sum(length(segment) for segment in item.segments)
        if isinstance(item, AtDestinations):
            rows = leaf(item.table)
            index = table(item, rows)
            return emit.inline(gather_rows, rows, index, item.axis, item.batch, item.leading)
        return item

    args = map_leaves(tuple(node.args if step.args is None else step.args), leaf)
    kwargs = map_leaves(dict(node.kwargs if step.kwargs is None else step.kwargs), leaf)
    return emit.call(step.target or node.target, args, kwargs, like=node)
