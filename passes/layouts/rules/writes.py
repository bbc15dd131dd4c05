"""Rules for writes that are values: part of a tensor takes the place of a part of another.

They come from writes in place (`normalize`). Written across the tokens, every token gets its own
part, as under `cat` along another axis. Written along the tokens, the part must lie between
segment borders, and be merged where what it replaces is.
"""

from __future__ import annotations

from torch import fx

from toma_fx.errors import CannotRewrite
from toma_fx.passes.graph.nodes import aten, op_name, shape
from toma_fx.passes.layouts.layout import AtDestinations, Segment, Step, TokenCount, TokenLayout
from toma_fx.passes.layouts.rules.joins import beside
from toma_fx.passes.layouts.rules.pointwise import agreed
from toma_fx.passes.layouts.rules.table import Flow, layout_rule


@layout_rule(aten.slice_scatter.default)
def slice_scatter(node: fx.Node, flow: Flow) -> Step:
    """`whole` with `part` in place of its elements `start … stop` along one axis."""
    whole, part = node.args[:2]
    dim, first, last, step = written_range(node)
    layouts = [flow.layout(whole), flow.layout(part)]
    axes = {layout.axis for layout in layouts if layout is not None}
    if axes == {dim}:
        if step != 1:
            raise CannotRewrite(f"{op_name(node)} writes between tokens", node)
        return _along_tokens(node, first, last, flow)
    layout = agreed(node, layouts)
    _keep_items(node, dim, layout)
    operands = [beside(node, operand, layout, flow) for operand in (whole, part)]
    return Step(layout, (*operands, *node.args[2:]), node.kwargs)


def written_range(node: fx.Node) -> tuple[int, int, int, int]:
    """Axis, first element, the one after the last, and step of a scatter."""
    given = dict(zip(("dim", "start", "end", "step"), node.args[2:], strict=False)) | node.kwargs
    size = shape(node)
    dim = given.get("dim", 0) % len(size)
    if node.target is aten.select_scatter.default:
        at = node.args[3] % size[dim]
        return dim, at, at + 1, 1
    first, last, _ = slice(given.get("start"), given.get("end")).indices(size[dim])
    return dim, first, last, given.get("step", 1)


def _along_tokens(node: fx.Node, first: int, last: int, flow: Flow) -> Step:
    whole, part = node.args[:2]
    outer, inner = flow.layout(whole), flow.layout(part)
    length = shape(node)[(outer or inner).axis]  # type: ignore[union-attr]
    if outer is None:
        # What stands around the part keeps its place, and all that merging moves is written over.
        assert inner is not None
        around = (Segment(first), *inner.segments, Segment(length - last))
        segments = tuple(segment for segment in around if segment.length)
        outer = TokenLayout(inner.axis, inner.batch, segments)
        if outer.is_merged:
            whole = AtDestinations(whole, outer.axis, outer.batch, segments)
    replaced = outer.between(first, last)
    found = inner.segments if inner is not None else (Segment(last - first),)
    if replaced is None or TokenLayout(0, None, replaced).merged_spans != (
        TokenLayout(0, None, found).merged_spans
    ):
        raise CannotRewrite(f"{op_name(node)} writes over a part of the merged tokens", node)
    ahead, behind = outer.between(0, first) or (), outer.between(last, length) or ()
    if inner is not None and inner.batch != outer.batch:
        raise CannotRewrite(f"the operands of {op_name(node)} carry items differently", node)
    layout = TokenLayout(outer.axis, outer.batch, (*ahead, *found, *behind))
    args = (whole, part, outer.axis, TokenCount(ahead), TokenCount((*ahead, *found)))
    return Step(layout, args, {})


@layout_rule(aten.select_scatter.default)
def select_scatter(node: fx.Node, flow: Flow) -> Step:
    """`whole` with `part` as its element `index` along an axis that `part` does not have."""
    whole, part, dim = node.args[:3]
    dim = dim % len(shape(node))
    outer, inner = flow.layout(whole), flow.layout(part)
    layout = agreed(node, [outer, None if inner is None else _with_axis(inner, dim)])
    if dim == layout.axis:
        raise CannotRewrite(f"{op_name(node)} writes single tokens", node)
    _keep_items(node, dim, layout)
    own = _without_axis(layout, dim)
    operands = (beside(node, whole, layout, flow), beside(node, part, own, flow))
    return Step(layout, (*operands, *node.args[2:]), node.kwargs)


def _with_axis(layout: TokenLayout, dim: int) -> TokenLayout:
    batch = layout.batch
    moved = None if batch is None else batch + (batch >= dim)
    return layout.moved(layout.axis + (layout.axis >= dim), moved)


def _without_axis(layout: TokenLayout, dim: int) -> TokenLayout:
    batch = layout.batch
    moved = None if batch is None else batch - (batch > dim)
    return layout.moved(layout.axis - (layout.axis > dim), moved)


def _keep_items(node: fx.Node, dim: int, layout: TokenLayout) -> None:
    if dim == layout.batch and shape(node)[dim] > 1:
        raise CannotRewrite(f"{op_name(node)} writes items one by one", node)


@layout_rule(aten.copy.default)
def copy(node: fx.Node, flow: Flow) -> Step:
    """`source` in the strides of `pattern`."""
    pattern, source = node.args[:2]
    own, given = flow.layout(pattern), flow.layout(source)
    if own is None or (given is None and shape(source) != shape(pattern)):
        raise CannotRewrite(f"{op_name(node)} broadcasts over tokens", node)
    layout = agreed(node, [own, given])
    return Step(layout, (pattern, beside(node, source, layout, flow), *node.args[2:]), node.kwargs)


@layout_rule(
    aten.empty_like.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
)
def like(node: fx.Node, flow: Flow) -> Step:
    """As long as its pattern."""
    layout = flow.layout(node.args[0])
    assert layout is not None
    return Step(layout, node.args)


@layout_rule(
    aten.new_empty.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_full.default,
)
def made_to_size(node: fx.Node, flow: Flow) -> Step:
    """Of the size it says, whatever the pattern's: a constant beside the tokens."""
    return Step(None)
