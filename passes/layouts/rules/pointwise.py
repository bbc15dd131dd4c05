"""Rules for operations that treat every token alike: elementwise, casts, copies, reductions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from toma_fx.errors import CannotRewrite
from toma_fx.passes.graph.nodes import aten, is_tensor, op_name, shape, writes
from toma_fx.passes.layouts.layout import AtDestinations, Step, TokenLayout
from toma_fx.passes.layouts.rules.table import Flow, layout_rule

PRODUCTS = (aten.mul.Tensor,)
FUSED_PRODUCTS = (aten.addcmul.default, aten.addcmul_.default)
"""A product of the last two operands, added to the first."""
ADDITIONS = (aten.add.Tensor, aten.add_.Tensor)


@layout_rule(torch.Tag.pointwise)
def pointwise(node: fx.Node, flow: Flow) -> Step:
    """Layouts pass; broadcasting aligns axes from the right. See `_partner` for other operands."""
    rank = len(shape(node))
    layout = agreed(node, [_aligned(node, arg, rank, flow) for arg in node.args])
    args = list(node.args)
    for index, arg in enumerate(node.args):
        if is_tensor(arg) and flow.layout(arg) is None and layout.is_merged:
            replaced = _partner(node, index, layout, rank, flow)
            if replaced is None:
                return Step(exit=_merged_operand(node, layout, flow))
            if isinstance(replaced, Leaving):
                return Step(exit=_merged_operand(node, layout, flow), stream=replaced.stream)
            args[index] = replaced
    if layout.is_merged and writes(node):
        raise CannotRewrite(f"{op_name(node)} writes into a merged tensor", node)
    return Step(layout, tuple(args))


def _aligned(node: fx.Node, arg: object, rank: int, flow: Flow) -> TokenLayout | None:
    layout = flow.layout(arg)
    if layout is None:
        return None
    shift = rank - len(shape(arg))
    return layout.moved(layout.axis + shift, None if layout.batch is None else layout.batch + shift)


@dataclass(frozen=True)
class Leaving:
    """A gate: the region ends before it, and its product is added to `stream`."""

    stream: fx.Node


def _partner(
    node: fx.Node, index: int, layout: TokenLayout, rank: int, flow: Flow
) -> object | None:
    """What replaces a full-length operand beside merged tokens; None to leave the region here.

    It stays if it has no token axis (adaLN shift, scale, gate). The residual stream of an
    addition is the region's exit. A position table gives its rows at the destinations. Only in a
    product may it come from an input (rotary embeddings): an input that is added, or chosen by,
    may as well be an activation (a control signal).

    A gate with a value for each token (frames that are given have another timestep) multiplies
    what the region adds to the stream. It is neither gathered nor merged: the tokens return to
    full length one operation earlier, and each is multiplied by the value that is its own.
    """
    other: fx.Node = node.args[index]
    missing = rank - len(shape(other))
    axis = layout.axis - missing
    if axis < 0 or shape(other)[axis] == 1:
        return other
    addition = node.target in ADDITIONS
    if addition and shape(other) == shape(node) and flow.is_residual(other, axis, layout.segments):
        return None
    if node.target in PRODUCTS and not flow.is_table(other, constant=False):
        stream = _gated_stream(node, axis, layout, flow)
        if stream is not None:
            return Leaving(stream)
    if not flow.is_table(other, constant=not _multiplies_tokens(node, index, flow)):
        raise CannotRewrite(
            f"{op_name(node)} mixes merged tokens with a full-length activation", node
        )
    return AtDestinations(other, axis + missing, layout.batch, layout.segments, leading=missing)


def _multiplies_tokens(node: fx.Node, index: int, flow: Flow) -> bool:
    """Whether an operand is a factor of merged tokens, and is not added to them."""
    if node.target in FUSED_PRODUCTS:
        return index > 0 and flow.layout(node.args[3 - index]) is not None
    return node.target in PRODUCTS


def _gated_stream(product: fx.Node, axis: int, layout: TokenLayout, flow: Flow) -> fx.Node | None:
    """The residual stream that a product is added to, where nothing else reads it."""
    streams = set()
    for user in product.users:
        others = [arg for arg in user.args if is_tensor(arg) and arg is not product]
        alike = len(others) == 1 and shape(others[0]) == shape(product) == shape(user)
        if user.target not in ADDITIONS or not alike:
            return None
        if not flow.is_residual(others[0], axis, layout.segments):
            return None
        streams.add(others[0])
    return streams.pop() if len(streams) == 1 else None


def _merged_operand(node: fx.Node, layout: TokenLayout, flow: Flow) -> int:
    """Which operand returns to full length; unmerging expects it as `[B, tokens, C]`."""
    if layout.axis != 1 or layout.batch or len(shape(node)) != 3:
        raise CannotRewrite(f"tokens return to the residual stream on axis {layout.axis}", node)
    merged = next(index for index, arg in enumerate(node.args) if flow.layout(arg) is not None)
    if merged == 0 and writes(node):
        raise CannotRewrite(f"{op_name(node)} writes into a merged tensor", node)
    return merged


def agreed(node: fx.Node, layouts: list[TokenLayout | None]) -> TokenLayout:
    """The one layout of all operands that have one.

    Raises:
        CannotRewrite: two operands carry tokens on different axes or in different segments.
    """
    found = [layout for layout in layouts if layout is not None]
    for other in found[1:]:
        if replace(other, batch=None) != replace(found[0], batch=None):
            raise CannotRewrite(f"the operands of {op_name(node)} carry tokens differently", node)
    batches = {layout.batch for layout in found}
    return found[0] if len(batches) == 1 else found[0].moved(found[0].axis, None)


@layout_rule(
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.to.device,
    aten.to.other,
    aten._to_copy.default,
    aten.contiguous.default,
    aten.alias.default,
    aten.detach.default,
    aten.type_as.default,
    aten.hardswish.default,
    aten.log_sigmoid.default,
    aten.selu.default,
    aten.rsub.Scalar,
)
def carried(node: fx.Node, flow: Flow) -> Step:
    """The first operand's layout passes; nothing else of the node knows about tokens."""
    layout = flow.layout(node.args[0])
    if layout is None:
        raise CannotRewrite(f"{op_name(node)} takes merged tokens as a pattern only", node)
    return Step(layout, node.args)


@layout_rule(aten.dropout.default)
def dropout(node: fx.Node, flow: Flow) -> Step:
    """Passes in eval; in training a mask of another length would be drawn."""
    if node.args[1] != 0 and node.args[2]:
        raise CannotRewrite("dropout is active: call model.eval()", node)
    return carried(node, flow)


@layout_rule(aten.softmax.int, aten.log_softmax.int, aten.glu.default, aten.cumsum.default)
def along_one_axis(node: fx.Node, flow: Flow) -> Step:
    """Passes if the operation runs along another axis than the tokens'."""
    layout = flow.layout(node.args[0])
    dim = node.args[1] if len(node.args) > 1 else -1
    if layout is None or dim % len(shape(node)) in (layout.axis, layout.batch):
        raise CannotRewrite(f"{op_name(node)} runs along the tokens or the batch", node)
    return Step(layout, node.args)


@layout_rule(
    aten.mean.dim,
    aten.sum.dim_IntList,
    aten.amax.default,
    aten.amin.default,
    aten.var.correction,
    aten.std.correction,
    aten.linalg_vector_norm.default,
    aten.norm.ScalarOpt_dim,
)
def reduction(node: fx.Node, flow: Flow) -> Step:
    """Passes if neither tokens nor batch items are reduced (hand-written norms)."""
    source = node.args[0]
    layout = flow.layout(source)
    arguments = _by_name(node)
    dims = arguments.get("dim")
    rank = len(shape(source))
    reduced = {d % rank for d in ([dims] if isinstance(dims, int) else dims or range(rank))}
    if layout is None or layout.axis in reduced or layout.batch in reduced:
        raise CannotRewrite(f"{op_name(node)} reduces over the tokens", node)
    if arguments.get("keepdim"):
        return Step(layout, node.args)
    batch = layout.batch
    if batch is not None:
        batch -= sum(d < batch for d in reduced)
    return Step(layout.moved(layout.axis - sum(d < layout.axis for d in reduced), batch), node.args)


def _by_name(node: fx.Node) -> dict[str, Any]:
    names = [argument.name for argument in getattr(node.target, "_schema").arguments]  # noqa: B009
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}
