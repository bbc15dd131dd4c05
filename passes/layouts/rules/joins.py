"""Rules for `cat` and `stack`: on the token axis segments line up, elsewhere layouts must agree."""

from __future__ import annotations

from torch import fx

from toma_fx.errors import CannotRewrite
from toma_fx.passes.graph.nodes import aten, op_name, shape
from toma_fx.passes.layouts.layout import AtDestinations, Segment, Step, TokenLayout
from toma_fx.passes.layouts.rules.pointwise import agreed
from toma_fx.passes.layouts.rules.table import Flow, layout_rule


@layout_rule(aten.cat.default, aten.concat.default, aten.concatenate.default)
def cat(node: fx.Node, flow: Flow) -> Step:
    # One-dimensional empties join anything, and add nothing.
    operands: list[fx.Node] = [operand for operand in node.args[0] if shape(operand) != (0,)]
    dim = (node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) % len(shape(node))
    layouts = [flow.layout(operand) for operand in operands]
    axes = {layout.axis for layout in layouts if layout is not None}
    if axes == {dim}:
        return Step(_joined(operands, layouts, dim), (operands, dim), {})
    layout = agreed(node, layouts)
    if dim == layout.batch:
        raise CannotRewrite(f"{op_name(node)} joins batches", node)
    replaced = [beside(node, operand, layout, flow) for operand in operands]
    return Step(layout, (replaced, dim), {})


def _joined(operands: list[fx.Node], layouts: list[TokenLayout | None], dim: int) -> TokenLayout:
    segments: list[Segment] = []
    for operand, layout in zip(operands, layouts, strict=True):
        length = shape(operand)[dim]
        segments += layout.segments if layout else [Segment(length)] * (length > 0)
    batches = {layout.batch for layout in layouts if layout is not None}
    return TokenLayout(dim, batches.pop() if len(batches) == 1 else None, tuple(segments))


def beside(node: fx.Node, operand: fx.Node, layout: TokenLayout, flow: Flow) -> object:
    """An operand without tokens merged beside merged ones: a table is gathered, else a refusal."""
    if flow.layout(operand) is not None or not layout.is_merged:
        return operand
    if not flow.is_table(operand, constant=False):
        raise CannotRewrite(f"{op_name(node)} joins merged tokens with a full-length tensor", node)
    return AtDestinations(operand, layout.axis, layout.batch, layout.segments)


@layout_rule(aten.pad.default, aten.constant_pad_nd.default)
def pad(node: fx.Node, flow: Flow) -> Step:
    """Constants around the tokens are tokens at full length; around other axes they pass."""
    layout = flow.layout(node.args[0])
    if layout is None:
        raise CannotRewrite(f"{op_name(node)} takes merged tokens as a pattern only", node)
    amounts, rank = list(node.args[1]), len(shape(node))
    around = {rank - 1 - at: tuple(amounts[2 * at : 2 * at + 2]) for at in range(len(amounts) // 2)}
    before, after = around.get(layout.axis, (0, 0))
    mode = "constant"
    if node.target is aten.pad.default and len(node.args) > 2:
        mode = node.args[2]
    if min(before, after) < 0 or (mode != "constant" and (before or after)):
        raise CannotRewrite(f"{op_name(node)} cuts or repeats tokens", node)
    if layout.batch is not None and any(around.get(layout.batch, ())):
        raise CannotRewrite(f"{op_name(node)} changes the batch", node)
    outer = (Segment(before), *layout.segments, Segment(after))
    segments = tuple(segment for segment in outer if segment.length)
    return Step(TokenLayout(layout.axis, layout.batch, segments), node.args)


@layout_rule(aten.pad_sequence.default)
def pad_sequence(node: fx.Node, flow: Flow) -> Step:
    """Items of one length, stacked; nothing is padded then."""
    operands: list[fx.Node] = list(node.args[0])
    given = dict(zip(("batch_first", "padding_value"), node.args[1:], strict=False)) | node.kwargs
    if len({shape(operand) for operand in operands}) > 1 or not given.get("batch_first", False):
        raise CannotRewrite(f"{op_name(node)} joins items of several lengths", node)
    layout = agreed(node, [flow.layout(operand) for operand in operands])
    replaced = [beside(node, operand, layout, flow) for operand in operands]
    batch = None if layout.batch is None else layout.batch + 1
    return Step(layout.moved(layout.axis + 1, batch), (replaced, *node.args[1:]), node.kwargs)


@layout_rule(aten.stack.default)
def stack(node: fx.Node, flow: Flow) -> Step:
    operands: list[fx.Node] = list(node.args[0])
    dim = (node.args[1] if len(node.args) > 1 else 0) % len(shape(node))
    layout = agreed(node, [flow.layout(operand) for operand in operands])
    replaced = [beside(node, operand, layout, flow) for operand in operands]
    batch = layout.batch
    if batch is not None and batch >= dim:
        batch += 1
    return Step(layout.moved(layout.axis + (layout.axis >= dim), batch), (replaced, dim))
