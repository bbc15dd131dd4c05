"""Within pass 1: operations that change nothing are removed."""

from __future__ import annotations

import torch
from torch import fx

from toma_fx.passes.graph.nodes import CATS, aten, cat_axis, part_of, writes


def drop_no_ops(gm: fx.GraphModule) -> None:
    """Remove nodes that equal another: casts to the same dtype, dropout in eval, `x / 1`."""
    writing = any(writes(node) for node in gm.graph.nodes)
    for node in gm.graph.nodes:
        same = _same_as(node, writing) if node.op == "call_function" else None
        if same is not None:
            node.replace_all_uses_with(same)
            gm.graph.erase_node(node)  # dead code elimination keeps random operations
    gm.graph.eliminate_dead_code()
    gm.recompile()


def _same_as(node: fx.Node, writing: bool) -> fx.Node | None:
    """The node that a node equals, if any."""
    if _returns_its_input(node, writing):
        same: fx.Node = node.args[0]
        return same
    return None if writing else _joined_again(node)


def _joined_again(node: fx.Node) -> fx.Node | None:
    """What a `cat` puts together again: the tensor whose parts, in order, are its operands.

    Blocks for one stream are often written for two, which are cut out of it and joined.
    """
    if node.target not in CATS or any(user.op == "output" for user in node.users):
        return None
    axis = cat_axis(node)
    whole, at = None, 0
    for operand in node.args[0]:
        part = part_of(operand, axis)
        if part is None or part[1] != at or whole not in (None, part[0]):
            return None
        whole, at = part[0], part[2]
    assert whole is not None
    same, joined = whole.meta["val"], node.meta["val"]
    alike = (same.shape, same.stride(), same.dtype) == (joined.shape, joined.stride(), joined.dtype)
    return whole if alike else None


def _returns_its_input(node: fx.Node, writing: bool) -> bool:
    if not node.args or not isinstance(node.args[0], fx.Node):
        return False
    result, source = node.meta.get("val"), node.args[0].meta.get("val")
    if not isinstance(result, torch.Tensor) or not isinstance(source, torch.Tensor):
        return False
    same = result.dtype == source.dtype and result.device == source.device
    if node.target in (aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten.type_as.default):
        copies = node.kwargs.get("copy") or (len(node.args) > 3 and node.args[3])
        formatted = "memory_format" in node.kwargs or len(node.args) > 4
        return same and not copies and not formatted
    if node.target in (aten.dropout.default, aten.feature_dropout.default):
        return len(node.args) > 2 and (node.args[1] == 0 or node.args[2] is False)
    if node.target in (aten.div.Tensor, aten.mul.Tensor):
        one = not isinstance(node.args[1], fx.Node) and node.args[1] == 1
        # The copy matters where it is returned, or where anything is written to in place.
        return same and one and not writing and all(user.op != "output" for user in node.users)
    return False
