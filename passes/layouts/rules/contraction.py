"""Rules for linears and norms: they pass if the token axis is neither contracted nor normalised."""

from __future__ import annotations

from torch import fx

from toma_fx.errors import CannotRewrite
from toma_fx.passes.graph.nodes import aten, op_name, shape
from toma_fx.passes.layouts.layout import Step, TokenLayout
from toma_fx.passes.layouts.rules.table import Flow, layout_rule


@layout_rule(aten.linear.default, aten.matmul.default, aten.mm.default)
def contraction(node: fx.Node, flow: Flow) -> Step:
    """`x @ W` over the last axis of `x`; the other operand is a weight without tokens."""
    return Step(_left(node, node.args[0], node.args[1:], flow), node.args)


@layout_rule(aten.addmm.default)
def addmm(node: fx.Node, flow: Flow) -> Step:
    """`bias + x @ W`; the bias is broadcast over tokens."""
    bias, left, weight = node.args[:3]
    if len(shape(bias)) == 2 and shape(bias)[0] != 1:
        raise CannotRewrite("aten.addmm adds a full-length bias", node)
    return Step(_left(node, left, (bias, weight), flow), node.args)


def _left(node: fx.Node, left: object, others: tuple[object, ...], flow: Flow) -> TokenLayout:
    layout = flow.layout(left)
    if layout is None or any(flow.layout(other) is not None for other in others):
        raise CannotRewrite(f"{op_name(node)} takes tokens as weights", node)
    rank = len(shape(left))
    if layout.axis == rank - 1:
        raise CannotRewrite(f"{op_name(node)} contracts the token axis", node)
    if layout.batch == rank - 1:
        raise CannotRewrite(f"{op_name(node)} contracts the batch axis", node)
    if len(shape(node)) != rank:
        raise CannotRewrite(f"{op_name(node)} broadcasts over tokens", node)
    return layout


@layout_rule(aten.outer.default)
def outer(node: fx.Node, flow: Flow) -> Step:
    """`a ⊗ b`: the tokens of `a` become rows, those of `b` columns (rotary angles)."""
    found = [flow.layout(arg) for arg in node.args]
    if None not in found:
        raise CannotRewrite("aten.outer pairs tokens with tokens", node)
    axis = 0 if found[1] is None else 1
    layout = found[axis]
    assert layout is not None
    return Step(layout.moved(axis, None), node.args)


@layout_rule(aten.einsum.default)
def einsum(node: fx.Node, flow: Flow) -> Step:
    """Passes if one operand alone has the tokens' letter and the result keeps it."""
    equation, operands = str(node.args[0]).replace(" ", ""), list(node.args[1])
    if "->" not in equation or "." in equation:
        raise CannotRewrite("aten.einsum with implicit letters", node)
    sources, result = equation.split("->")
    letters = sources.split(",")
    carrying = [index for index, operand in enumerate(operands) if flow.layout(operand)]
    layout = flow.layout(operands[carrying[0]])
    assert layout is not None
    own = letters[carrying[0]]
    token = own[layout.axis]
    if len(carrying) > 1 or sources.count(token) > 1 or token not in result:
        raise CannotRewrite("aten.einsum contracts or pairs the tokens", node)
    kept = layout.batch is not None and own[layout.batch] in result
    batch = result.index(own[layout.batch]) if kept else None  # type: ignore[index]
    return Step(layout.moved(result.index(token), batch), node.args)


@layout_rule(aten.layer_norm.default, aten.rms_norm.default)
def channel_norm(node: fx.Node, flow: Flow) -> Step:
    """Layer and RMS norms over trailing axes."""
    layout = flow.layout(node.args[0])
    normalised = len(node.args[1])
    first = len(shape(node)) - normalised
    if layout is None or max(layout.axis, layout.batch or 0) >= first:
        raise CannotRewrite(f"{op_name(node)} normalises over the tokens or the batch", node)
    return Step(layout, node.args)


@layout_rule(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
def convolution(node: fx.Node, flow: Flow) -> Step:
    """A kernel of one element is a linear over channels; a larger one mixes tokens."""
    layout = flow.layout(node.args[0])
    names = ("stride", "padding", "dilation", "groups")
    given = dict(zip(names, node.args[3:], strict=False)) | node.kwargs
    kernel = shape(node.args[1])[2:]
    steps = given.get("stride", 1)
    plain = all(step == 1 for step in ([steps] if isinstance(steps, int) else steps))
    if layout is None or any(flow.layout(other) is not None for other in node.args[1:3]):
        raise CannotRewrite(f"{op_name(node)} takes tokens as weights", node)
    if any(size > 1 for size in kernel) or not plain or shape(node)[2:] != shape(node.args[0])[2:]:
        raise CannotRewrite(f"{op_name(node)} mixes tokens", node)
    if len(shape(node)) != len(kernel) + 2 or layout.axis < 2 or layout.batch not in (0, None):
        raise CannotRewrite(f"{op_name(node)} contracts the token axis", node)
    return Step(layout, node.args)


@layout_rule(
    aten.convolution.default,
    aten.group_norm.default,
    aten.batch_norm.default,
    aten.instance_norm.default,
    aten.avg_pool2d.default,
    aten.upsample_nearest2d.vec,
)
def mixes_tokens(node: fx.Node, flow: Flow) -> Step:
    """Neighbouring tokens meet here; merged ones have no neighbours."""
    raise CannotRewrite(f"{op_name(node)} mixes tokens", node)
