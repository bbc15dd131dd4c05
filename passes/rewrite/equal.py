"""The last step of pass 5: what the merged graph computes twice is computed once.

Why: every block of a model prepares the same position tables, gathers them at the same destinations
and takes the same activation of the timestep. Each copy is traced, lowered and scheduled by the
compiler, and a kernel that computes it on the way is one more to compile.

Before: `unsqueeze(cos) → index_select(rows)` at each attention; after: at the first one.

Precondition: none. What is written to, read from there, random or returned stays as it is, and so
does everything that is no operation of ATen.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from toma_fx.passes.graph.nodes import is_getitem, is_view, writes


def share_equal_nodes(graph: fx.Graph) -> None:
    """Let later nodes that equal an earlier one be that one, in place."""
    apart = {_memory(node) for node in graph.nodes for node in _not_shared(node)}
    found: dict[Any, fx.Node] = {}
    for node in graph.nodes:
        if not _computes(node) or any(_memory(n) in apart for n in (node, *node.all_input_nodes)):
            continue
        first = found.setdefault(_key((node.target, node.args, node.kwargs)), node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)


def _computes(node: fx.Node) -> bool:
    """Whether a node is a function of its operands."""
    if node.op != "call_function" or writes(node):
        return False
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return is_getitem(node)
    return target.namespace == "aten" and torch.Tag.nondeterministic_seeded not in target.tags


def _not_shared(node: fx.Node) -> Iterator[fx.Node]:
    """What a node may change, show after a change or hand out: it has memory of its own."""
    if node.op == "output" or (node.op == "call_function" and not _computes(node)):
        yield from (node, *node.all_input_nodes)


def _memory(node: fx.Node) -> fx.Node:
    """The node whose memory a node shows."""
    while node.all_input_nodes and (is_view(node) or is_getitem(node)):
        node = node.all_input_nodes[0]
    return node


def _key(item: Any) -> Any:
    """What two equal nodes have in common: numbers are alike to the last bit."""
    if isinstance(item, fx.Node):
        return item
    if isinstance(item, dict):
        return tuple((name, _key(item[name])) for name in sorted(item))
    if isinstance(item, list | tuple):
        return tuple(map(_key, item))
    if isinstance(item, slice):
        return slice, _key((item.start, item.stop, item.step))
    return type(item), repr(item) if isinstance(item, float) else item
