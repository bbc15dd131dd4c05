"""Gates that all tokens share, between what a region computes and what it adds to its stream.

Transformers with adaptive norms add `g(t) · f(x)`: what is computed of each token, times a gate of
the timestep. Nothing in it is the token's own. So a memory holds `f(x)`, and a token that is not
computed gets the gate of the step that it is in, not of the one in which it was computed.
"""

from __future__ import annotations

from torch import fx

from toma_fx.passes.find.region import Region
from toma_fx.passes.graph.nodes import aten, is_tensor, shape
from toma_fx.passes.layouts.analysis import Analysis
from toma_fx.passes.layouts.layout import Step, TokenLayout
from toma_fx.passes.layouts.rules.pointwise import PRODUCTS

_CASTS = (aten.to.dtype, aten._to_copy.default)


def read_gates(region: Region, analysis: Analysis) -> None:
    """Tell a region what lies before its exits, and whether the timestep moves a gate there."""
    region.added = {
        exit: _added(region, exit) for exit in region.exits if region.steps[exit].exit is not None
    }
    products = (node for path in region.added.values() for node in path[1:])
    region.gate_moves = any(
        not analysis.inputs.constant(other)
        for product in products
        for other in product.all_input_nodes
        if _layout(region, other) is None
    )


def _added(region: Region, exit: fx.Node) -> tuple[fx.Node, ...]:
    """What leads to the addition at an exit: what is computed of tokens, then gate by gate.

    The last one is the exit's operand. Without a gate it is the only one. What gates are computed
    in more digits for is taken before it was widened.
    """
    place = region.steps[exit].exit
    assert place is not None
    node = exit.args[place]
    assert isinstance(node, fx.Node)
    found, ungated = [node], 0
    while (inner := _behind(region, node)) is not None:
        found.append(inner)
        if node.target in PRODUCTS or (ungated and _bytes(inner) < _bytes(node)):
            ungated = len(found) - 1
        node = inner
    return tuple(reversed(found[: ungated + 1]))


def _behind(region: Region, node: fx.Node) -> fx.Node | None:
    """The one operand with tokens of a product or a cast whose other operands have none."""
    if node not in region.steps or node.target not in (*PRODUCTS, *_CASTS):
        return None
    layout = _layout(region, node)
    tokens = [item for item in node.all_input_nodes if _layout(region, item) is not None]
    if layout is None or len(tokens) != 1 or node.args.count(tokens[0]) != 1:
        return None
    (inner,) = tokens
    alike = shape(inner) == shape(node) and _layout(region, inner) == layout
    others = [item for item in node.args if is_tensor(item) and item is not inner]
    return inner if alike and all(_shared(item, node, layout) for item in others) else None


def _bytes(node: fx.Node) -> int:
    return int(node.meta["val"].element_size())


def _shared(gate: fx.Node, node: fx.Node, layout: TokenLayout) -> bool:
    """Whether all tokens of an item have one value of a gate."""
    axis = layout.axis - (len(shape(node)) - len(shape(gate)))
    return axis < 0 or shape(gate)[axis] == 1


def _layout(region: Region, node: fx.Node) -> TokenLayout | None:
    layout = region.steps.get(node, Step()).layout
    return layout if isinstance(layout, TokenLayout) else None
