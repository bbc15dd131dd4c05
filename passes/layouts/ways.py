"""The way of one axis through one operation, backwards: which axis of which operand carries it."""

from __future__ import annotations

import math

from torch import fx

from toma_fx.errors import CannotRewrite
from toma_fx.passes.graph.nodes import CATS, aten, cat_axis, is_getitem, shape
from toma_fx.passes.layouts.layout import Segment, Step, TokenLayout
from toma_fx.passes.layouts.rules import apply_rule
from toma_fx.passes.layouts.rules.writes import written_range

_FOLDS = (
    aten.view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten._unsafe_view.default,
)


UNFOLDS = (*_FOLDS, aten.unflatten.int)
_RESIZING = (
    aten.avg_pool1d.default,
    aten.avg_pool2d.default,
    aten.avg_pool3d.default,
    aten.constant_pad_nd.default,
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv3d.default,
    aten.conv_transpose1d.default,
    aten.conv_transpose2d.input,
    aten.conv_transpose3d.input,
    aten.pad.default,
    aten.upsample_nearest2d.vec,
)


def carries(node: fx.Node, operand: fx.Node, candidate: int, axis: int) -> bool:
    """Ask the forward rule whether tokens on `candidate` of `operand` end on `axis` of `node`."""
    layout = TokenLayout(candidate, None, (Segment(shape(operand)[candidate]),))
    try:
        if not is_getitem(node):
            result = _ask(node, operand, layout)
        else:
            results = _ask(node.args[0], operand, layout).layout
            result = Step(results[node.args[1]] if isinstance(results, tuple) else None)
    except CannotRewrite:
        return False
    found = result.layout
    return isinstance(found, TokenLayout) and (found.axis, found.length) == (axis, layout.length)


def _ask(node: fx.Node, operand: fx.Node, layout: TokenLayout) -> Step:
    return apply_rule(node, _Probe(operand, layout))


class _Probe:
    """A flow in which one operand carries unmerged tokens."""

    def __init__(self, operand: fx.Node, layout: TokenLayout) -> None:
        self._operand, self._layout = operand, layout

    def layout(self, node: object) -> TokenLayout | None:
        return self._layout if node is self._operand else None

    def results(self, node: fx.Node) -> tuple[TokenLayout | None, ...]:
        raise CannotRewrite("a probe stops at several results", node)

    def is_table(self, node: fx.Node, *, constant: bool) -> bool:
        return False

    def is_mask(self, node: fx.Node) -> bool:
        return False

    def is_residual(self, node: fx.Node, axis: int, segments: tuple[Segment, ...]) -> bool:
        return False


def folded_sides(node: fx.Node, axis: int) -> list[tuple[int, int]]:
    """`(axis, size)` of what a reshape folds into `axis`: height and width, or frames before."""
    if node.target not in _FOLDS:
        return []
    before, after = shape(node.args[0]), shape(node)
    at = math.prod(after[:axis])
    product = 1
    sides: list[tuple[int, int]] = []
    for index, size in enumerate(before):
        if product >= at and math.prod(n for _, n in sides) < after[axis] and size > 1:
            sides.append((index, size))
        product *= size
    return sides if math.prod(n for _, n in sides) == after[axis] else []


def before_unfold(node: fx.Node, axis: int) -> tuple[fx.Node, int] | None:
    """The longer axis of which a reshape makes `axis` one side."""
    if node.target not in UNFOLDS:
        return None
    source: fx.Node = node.args[0]
    after = shape(node)
    ahead, product = math.prod(after[:axis]), 1
    for index, size in enumerate(shape(source)):
        if product <= ahead < product * size and size > after[axis]:
            return source, index
        product *= size
    return None


def sides_of_split(node: fx.Node, axis: int) -> tuple[int, ...]:
    """The sizes that a reshape makes of an axis of its operand, without those of one."""
    before, after = shape(node.args[0]), shape(node)
    sides: list[int] = []
    product, start = 1, math.prod(before[:axis])
    for size in after:
        if product >= start and math.prod(sides) < before[axis] and size > 1:
            sides.append(size)
        product *= size
    return tuple(sides) if math.prod(sides) == before[axis] else ()


def joins_items(node: fx.Node, axis: int) -> bool:
    """Whether several items become a batch, seen along another axis."""
    if node.target in CATS:
        return cat_axis(node) == 0 != axis and len(node.args[0]) > 1
    first = node.target is aten.pad_sequence.default or (
        node.target is aten.stack.default and (len(node.args) < 2 or node.args[1] == 0)
    )
    return first and axis > 0


def joined_items(node: fx.Node, axis: int) -> list[tuple[fx.Node, int]]:
    """The items that were joined into a batch, and the axis of theirs that became one of its."""
    items: list[fx.Node] = node.args[0]
    return [(item, axis - (len(shape(node)) > len(shape(item)))) for item in items]


def pads_items(node: fx.Node) -> bool:
    """Whether items `[N, C]` of several lengths become a batch `[B, N, C]`, pads behind them."""
    left = (*node.args[3:4], node.kwargs.get("padding_side", "right"))[0] == "left"
    first = (*node.args[1:2], node.kwargs.get("batch_first", False))[0]
    return node.target is aten.pad_sequence.default and bool(first) and not left


def reads_a_written_item(node: fx.Node) -> bool:
    """Whether a node is an item of a batch that was written item by item."""
    if node.target is not aten.select.int or node.args[1] % len(shape(node.args[0])) != 0:
        return False
    source: fx.Node = node.args[0]
    return source.target is aten.select_scatter.default and written_range(source)[0] == 0


def is_sequence(node: fx.Node) -> bool:
    """Whether a tensor `[B, C, N]` is channels over one side, as sound is."""
    return node.op == "placeholder" or node.target is aten.conv1d.default


def resized(node: fx.Node, axis: int) -> tuple[fx.Node, int] | None:
    """The side of which an operation on neighbours makes another: it is the same picture's."""
    return (node.args[0], axis) if node.target in _RESIZING and axis >= 2 else None


def token_axes(node: fx.Node) -> range:
    return range(1, len(shape(node)))
