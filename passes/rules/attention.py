"""Rules for attention: the query's tokens become the result's."""

from __future__ import annotations

from torch import fx

from toma_fx.errors import CannotRewrite
from toma_fx.passes.graphs import ATTENTIONS, aten, shape
from toma_fx.passes.layout import AtDestinations, Step, TokenLayout
from toma_fx.passes.rules.table import Flow, layout_rule


@layout_rule(*ATTENTIONS)
def scaled_dot_product_attention(node: fx.Node, flow: Flow) -> Step:
    """Keys and values may be merged, text, or both; a mask table is gathered on merged axes."""
    query, key, value = (flow.layout(arg) for arg in node.args[:3])
    for layout, arg in zip((query, key, value), node.args, strict=False):
        if layout is not None and layout.axis != len(shape(arg)) - 2:
            raise CannotRewrite("attention runs along another axis than the tokens", node)
        if layout is not None and layout.batch:
            raise CannotRewrite("attention pairs the items of its operands differently", node)
    if (key is None) != (value is None) or (key and value and key.segments != value.segments):
        raise CannotRewrite("keys and values carry tokens differently", node)
    names = ("attn_mask", "dropout_p", "is_causal")
    given = {**dict(zip(names, node.args[3:6], strict=False)), **node.kwargs}
    if given.get("dropout_p"):
        raise CannotRewrite("attention dropout is active: call model.eval()", node)
    if given.get("is_causal") and _merged(query, key):
        raise CannotRewrite("causal attention depends on the order of tokens", node)
    mask = given.get("attn_mask")
    if mask is None:
        return Step(query, node.args)
    given["attn_mask"] = _mask(node, mask, query, key, flow)
    return Step(query, node.args[:3], given)


def _merged(*layouts: TokenLayout | None) -> bool:
    return any(layout is not None and layout.is_merged for layout in layouts)


def _mask(
    node: fx.Node, mask: fx.Node, query: TokenLayout | None, key: TokenLayout | None, flow: Flow
) -> fx.Node | AtDestinations:
    rows: fx.Node | AtDestinations = mask
    rank = len(shape(node))
    leading = rank - len(shape(mask))
    for layout, axis in ((query, rank - 2), (key, rank - 1)):
        given = axis - leading
        if not _merged(layout) or given < 0 or shape(mask)[given] == 1:
            continue
        if not flow.is_table(mask, constant=False):
            raise CannotRewrite("the attention mask depends on activations", node)
        assert layout is not None
        ahead = leading if rows is mask else 0
        rows = AtDestinations(rows, axis, layout.batch, layout.segments, ahead)
    return rows


@layout_rule(aten.view_as_complex.default, aten.view_as_real.default)
def rotary_complex(node: fx.Node, flow: Flow) -> Step:
    """Rotary embeddings as complex numbers: the last axis becomes, or leaves, a pair."""
    source = node.args[0]
    layout = flow.layout(source)
    if layout is None or layout.axis == len(shape(source)) - 1:
        raise CannotRewrite("the token axis is a pair of real and imaginary parts", node)
    return Step(layout, node.args)
