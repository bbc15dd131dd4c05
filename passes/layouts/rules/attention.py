"""Rules for attention: the query's tokens become the result's."""

from __future__ import annotations

from typing import Any

from torch import fx

from toma_fx.errors import CannotRewrite
from toma_fx.passes.graph import attentions
from toma_fx.passes.graph.nodes import aten, op_name, shape
from toma_fx.passes.layouts.layout import AtDestinations, Step, TokenCount, TokenLayout
from toma_fx.passes.layouts.rules.table import Flow, layout_rule


@layout_rule(*attentions.names())
def attention(node: fx.Node, flow: Flow) -> Step:
    """Keys and values may be merged, text, or both; a mask is gathered on merged axes.

    A mask says which tokens attend. Those that stand for others keep theirs, so that its rows and
    columns are read at the destinations. The input that it was built from may feed a layer as well
    (the mean over the words of a prompt): only what a layer made is refused.
    """
    query, key, value = (flow.layout(arg) for arg in node.args[:3])
    axis = attentions.token_axis(node)
    for layout in (query, key, value):
        if layout is not None and layout.axis != axis:
            raise CannotRewrite("attention runs along another axis than the tokens", node)
        if layout is not None and layout.batch:
            raise CannotRewrite("attention pairs the items of its operands differently", node)
    if (key is None) != (value is None) or (
        key and value and (key.segments, key.ranks) != (value.segments, value.ranks)
    ):
        raise CannotRewrite("keys and values carry tokens differently", node)
    given = attentions.arguments(node)
    changed = {}
    for name, argument in given.items():
        new = _argument(node, name, argument, query, key, flow)
        if new is not argument:
            changed[name] = new
    if not isinstance(node.meta["val"], tuple | list):
        return _step(node, query, changed)
    return _step(node, (query, *_beside(node, query)), changed)


def _beside(node: fx.Node, query: TokenLayout | None) -> list[TokenLayout | None]:
    """What the attention returns beside its result: of each query the normaliser, if it is read.

    Raises:
        CannotRewrite: anything else is read, or normalisers that are padded.
    """
    found: list[TokenLayout | None] = [None] * (len(node.meta["val"]) - 1)
    read = {user.args[1]: user for user in node.users if user.users}
    if not read.keys() <= {0, attentions.NORMALISER}:
        raise CannotRewrite("what the attention returns beside its result is read", node)
    normaliser = read.get(attentions.NORMALISER)
    if normaliser is not None and query is not None:
        axis = attentions.NORMALISER_AXIS
        if shape(normaliser)[axis : axis + 1] != (query.length,):
            raise CannotRewrite("the attention pads the normaliser that is read", node)
        found[attentions.NORMALISER - 1] = query.moved(axis, query.batch)
    return found


def _step(node: fx.Node, layout: Any, changed: dict[str, Any]) -> Step:
    """The node's arguments where they were given, by position or by name."""
    names = [argument.name for argument in node.target._schema.arguments]
    args = (changed.get(n, arg) for n, arg in zip(names, node.args, strict=False))
    kwargs = {name: changed.get(name, argument) for name, argument in node.kwargs.items()}
    return Step(layout, tuple(args), kwargs)


def _argument(
    node: fx.Node,
    name: str,
    given: Any,
    query: TokenLayout | None,
    key: TokenLayout | None,
    flow: Flow,
) -> Any:
    """What becomes of one argument after query, key and value.

    Raises:
        CannotRewrite: it tells one token from another.
    """
    if name in attentions.MASKS:
        return given if given is None else _mask(node, given, query, key, flow)
    if name in attentions.DROPOUT and given:
        raise CannotRewrite("attention dropout is active: call model.eval()", node)
    if name in attentions.CAUSAL and given:
        if _merged(query, key):
            raise CannotRewrite("causal attention depends on the order of tokens", node)
        return given
    for counts, layout, operand in (
        (attentions.QUERY_COUNTS, query, node.args[0]),
        (attentions.KEY_COUNTS, key, node.args[1]),
    ):
        if name in counts and given == shape(operand)[attentions.token_axis(node)]:
            return given if layout is None else TokenCount(layout.segments)
    if not attentions.is_harmless(name, given):
        raise CannotRewrite(f"{op_name(node)} is called with {name}={given}", node)
    return given


def _merged(*layouts: TokenLayout | None) -> bool:
    return any(layout is not None and layout.is_merged for layout in layouts)


def _mask(
    node: fx.Node, mask: fx.Node, query: TokenLayout | None, key: TokenLayout | None, flow: Flow
) -> fx.Node | AtDestinations:
    rows: fx.Node | AtDestinations = mask
    rank = len(shape(node.args[0]))
    leading = rank - len(shape(mask))
    for layout, axis in ((query, rank - 2), (key, rank - 1)):
        given = axis - leading
        if not _merged(layout) or given < 0 or shape(mask)[given] == 1:
            continue
        if not flow.is_mask(mask):
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
