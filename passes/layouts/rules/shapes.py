"""Rules for views: follow the token axis, and rewrite literal token counts in the arguments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import fx

from toma_fx.errors import CannotRewrite
from toma_fx.passes.graph.nodes import aten, op_name, shape
from toma_fx.passes.layouts.layout import Step, TokenCount, TokenLayout
from toma_fx.passes.layouts.ranks import foldings, of_one, ranks_axis, with_ranks_on
from toma_fx.passes.layouts.rules.pointwise import agreed
from toma_fx.passes.layouts.rules.table import Flow, layout_rule


def _input(node: fx.Node, flow: Flow) -> tuple[TokenLayout, tuple[int, ...]]:
    layout = flow.layout(node.args[0])
    if layout is None:
        raise CannotRewrite(f"{op_name(node)} takes merged tokens as a pattern only", node)
    return layout, shape(node.args[0])


def follow(source: Sequence[int], result: Sequence[int], axis: int) -> int | None:
    """Where an axis stands after a reshape: same size, same product of sizes before it."""
    before, at = math.prod(source[:axis]), 1
    for index, size in enumerate(result):
        if at == before and size == source[axis]:
            return index
        at *= size
    return None


@layout_rule(aten.view.default, aten.reshape.default, aten._unsafe_view.default)
def reshape(node: fx.Node, flow: Flow) -> Step:
    layout, before = _input(node, flow)
    moved = _refold(node, layout, before)
    sizes = list(node.args[1])
    if sizes[moved.axis] != -1:
        sizes[moved.axis] = TokenCount(moved.segments)
    return Step(moved, (node.args[0], sizes))


@layout_rule(aten.flatten.using_ints, aten.unflatten.int)
def fold(node: fx.Node, flow: Flow) -> Step:
    """Folds of other axes; their arguments count axes, not tokens."""
    layout, before = _input(node, flow)
    return Step(_refold(node, layout, before), node.args)


def _refold(node: fx.Node, layout: TokenLayout, before: Sequence[int]) -> TokenLayout:
    after = shape(node)
    for known, sizes in foldings(layout, before):
        axis = follow(sizes, after, known.axis)
        at = ranks_axis(known)
        ranks = None if at is None else follow(sizes, after, at)
        if axis is not None and (at is None) == (ranks is None):
            batch = None if known.batch is None else follow(sizes, after, known.batch)
            moved = known.moved(axis, None if batch == axis else batch)
            return moved if at is None else with_ranks_on(moved, ranks)
    raise CannotRewrite(f"{op_name(node)} folds the token axis", node)


def _renamed(node: fx.Node, flow: Flow, origin: Sequence[int]) -> Step:
    """Axes change places: result axis `i` is source axis `origin[i]`."""
    layout, _ = _input(node, flow)
    batch = None if layout.batch is None else origin.index(layout.batch)
    moved = layout.moved(origin.index(layout.axis), batch)
    ranks = ranks_axis(layout)
    return Step(moved if ranks is None else with_ranks_on(moved, origin.index(ranks)), node.args)


@layout_rule(aten.permute.default)
def permute(node: fx.Node, flow: Flow) -> Step:
    rank = len(shape(node))
    return _renamed(node, flow, [dim % rank for dim in node.args[1]])


@layout_rule(aten.transpose.int, aten.swapaxes.default)
def transpose(node: fx.Node, flow: Flow) -> Step:
    rank = len(shape(node))
    origin = list(range(rank))
    a, b = (dim % rank for dim in node.args[1:3])
    origin[a], origin[b] = origin[b], origin[a]
    return _renamed(node, flow, origin)


@layout_rule(aten.unsqueeze.default)
def unsqueeze(node: fx.Node, flow: Flow) -> Step:
    layout, _ = _input(node, flow)
    dim = node.args[1] % len(shape(node))
    return Step(_shifted(layout, dim, 1), node.args)


@layout_rule(aten.squeeze.dim, aten.squeeze.dims)
def squeeze(node: fx.Node, flow: Flow) -> Step:
    layout, before = _input(node, flow)
    given = node.args[1]
    dims = sorted(
        {d % len(before) for d in ([given] if isinstance(given, int) else given)}, reverse=True
    )
    for dim in dims:
        if before[dim] == 1:
            layout = _dropped(node, layout, dim)
    return Step(layout, node.args)


def _shifted(layout: TokenLayout, dim: int, by: int) -> TokenLayout:
    """Axes at and after `dim` move by `by`."""
    batch = layout.batch
    if batch is not None and batch >= dim:
        batch += by
    return layout.moved(layout.axis + by * (layout.axis >= dim), batch)


def _dropped(node: fx.Node, layout: TokenLayout, dim: int) -> TokenLayout:
    if layout.axis == dim:
        raise CannotRewrite(f"{op_name(node)} picks single tokens", node)
    return _shifted(layout.moved(layout.axis, None) if layout.batch == dim else layout, dim, -1)


@layout_rule(aten.expand.default)
def expand(node: fx.Node, flow: Flow) -> Step:
    layout, before = _input(node, flow)
    grown = len(shape(node)) - len(before)
    moved = _shifted(layout, 0, grown)
    sizes = list(node.args[1])
    if sizes[moved.axis] != -1:
        sizes[moved.axis] = TokenCount(layout.segments)
    return Step(moved, (node.args[0], sizes))


@layout_rule(aten.expand_as.default)
def expand_as(node: fx.Node, flow: Flow) -> Step:
    source, pattern = node.args
    shift = len(shape(node)) - len(shape(source))
    layout = flow.layout(source)
    if layout is None or flow.layout(pattern) is None:
        raise CannotRewrite(f"{op_name(node)} expands to another length", node)
    return Step(agreed(node, [_shifted(layout, 0, shift), flow.layout(pattern)]), node.args)


@layout_rule(aten.repeat_interleave.self_int)
def repeat_interleave(node: fx.Node, flow: Flow) -> Step:
    layout, before = _input(node, flow)
    dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim")
    if dim is None or dim % len(before) in (layout.axis, layout.batch):
        raise CannotRewrite(f"{op_name(node)} repeats tokens", node)
    return Step(layout, node.args)


@layout_rule(aten.repeat.default)
def repeat(node: fx.Node, flow: Flow) -> Step:
    """Other axes may repeat; new ones stand in front."""
    layout, before = _input(node, flow)
    times = node.args[1]
    grown = len(times) - len(before)
    moved = _shifted(layout, 0, grown)
    if times[moved.axis] != 1 or (moved.batch is not None and times[moved.batch] != 1):
        raise CannotRewrite(f"{op_name(node)} repeats tokens", node)
    return Step(moved, node.args)


@layout_rule(aten.select.int)
def select(node: fx.Node, flow: Flow) -> Step:
    """One place of another axis; on the axis that counts ranks, one of them."""
    layout, before = _input(node, flow)
    dim, ranks = node.args[1] % len(before), ranks_axis(layout)
    if dim == ranks:
        layout, ranks = of_one(layout, node.args[2]), None
    moved = _dropped(node, layout, dim)
    return Step(moved if ranks is None else with_ranks_on(moved, ranks - (ranks > dim)), node.args)


@layout_rule(aten.slice.Tensor)
def slice_(node: fx.Node, flow: Flow) -> Step:
    """Slices of the token axis must cut at segment borders."""
    layout, before = _input(node, flow)
    defaults: tuple[Any, ...] = (0, None, None, 1)
    dim, start, stop, step = list(node.args[1:]) + list(defaults[len(node.args) - 1 :])
    dim = dim % len(before)
    first, last, _ = slice(start, stop).indices(before[dim])
    if dim != layout.axis:
        if dim == layout.batch and last - first != before[dim]:
            raise CannotRewrite(f"{op_name(node)} cuts the batch inside a region", node)
        return Step(layout, node.args)
    piece = layout.between(first, last)
    if step != 1 or piece is None:
        raise CannotRewrite(f"{op_name(node)} cuts through merged tokens", node)
    ahead = layout.between(0, first) or ()
    args = (node.args[0], dim, TokenCount(ahead), TokenCount((*ahead, *piece)))
    return Step(_piece(layout, piece), args)


def _piece(layout: TokenLayout, segments: tuple[Any, ...]) -> TokenLayout | None:
    """The layout of a part; None if nothing in it is merged (a branch that keeps only text)."""
    piece = TokenLayout(layout.axis, layout.batch, segments)
    return piece if piece.is_merged or not layout.is_merged else None


@layout_rule(aten.split_with_sizes.default, aten.split.Tensor, aten.split.sizes, aten.chunk.default)
def split(node: fx.Node, flow: Flow) -> Step:
    """Splits of the token axis must cut at segment borders; the sizes become token counts."""
    layout, before = _input(node, flow)
    dim = (node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)) % len(before)
    count = len(node.meta["val"])
    if dim != layout.axis:
        if dim == layout.batch and count > 1:
            raise CannotRewrite(f"{op_name(node)} cuts the batch inside a region", node)
        return Step((layout,) * count, node.args, node.kwargs)
    sizes, results, at = [], [], 0
    for part in node.meta["val"]:
        piece = layout.between(at, at + int(part.shape[dim]))
        if piece is None:
            raise CannotRewrite(f"{op_name(node)} cuts through merged tokens", node)
        sizes.append(TokenCount(piece))
        results.append(_piece(layout, piece))
        at += int(part.shape[dim])
    args = (node.args[0], sizes, dim)
    return Step(tuple(results), args, {}, aten.split_with_sizes.default)


@layout_rule(aten.unbind.int)
def unbind(node: fx.Node, flow: Flow) -> Step:
    layout, before = _input(node, flow)
    dim = (node.args[1] if len(node.args) > 1 else 0) % len(before)
    return Step((_dropped(node, layout, dim),) * len(node.meta["val"]), node.args)
