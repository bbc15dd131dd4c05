"""Which part of a step each node of a graph belongs to.

Read off the graph itself, before Inductor fuses it: attention, linears, convolutions and norms by
their operation; planning, merge and unmerge by what they touch. *Planning* is what reaches the
result only through the plans: in-place writes to the buffers `toma_…`, and whatever only they, or
the index of a gather or scatter, read. A node that reads a plan and an activation *merges* where
it makes the activation smaller, or keeps its size, and *unmerges* where it makes it larger. One
that reads rows of a position table belongs to what the table is for: it merges nothing.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from toma_fx.passes.graph.inputs import Inputs

PARTS = (
    "attention",
    "linears",
    "convolutions",
    "norms",
    "merge",
    "unmerge",
    "planning",
    "other",
)
_BUFFERS = "toma_"
# Parts of names of operations; the first that fits.
_BY_NAME = (
    ("attention", ("scaled_dot_product", "flash")),
    ("norms", ("layer_norm", "group_norm", "rms_norm", "rsqrt")),
    ("convolutions", ("conv",)),
    ("linears", ("linear", "addmm", "mm", "matmul")),
)
# Operations that take an index, and where it stands among their arguments.
_INDEXED = {
    "index_select": 2,
    "gather": 2,
    "take_along_dim": 1,
    "index": 1,
    "index_add": 2,
    "index_copy": 2,
    "scatter": 2,
    "scatter_add": 2,
    "scatter_reduce": 2,
}


def part_of_each(graph: fx.Graph) -> dict[fx.Node, str]:
    """The part of every operation."""
    planning = _planning(graph)
    planned = set(planning) | {node for node in graph.nodes if _is_buffer(node)}
    inputs = Inputs(graph) if planned else None
    found: dict[fx.Node, str] = {}
    for node in graph.nodes:
        if node.op not in ("call_function", "call_method"):
            continue
        sources = node.all_input_nodes
        if node in planning or (sources and all(source in planned for source in sources)):
            planned.add(node)
            found[node] = "planning"
        elif any(source in planned for source in sources):
            rest = [source for source in sources if source not in planned]
            if inputs is not None and all(map(inputs.is_table, rest)):
                found[node] = by_name(operation(node))
                continue
            grows = _size(node) > max(_size(source) for source in rest)
            found[node] = "unmerge" if grows else "merge"
        else:
            found[node] = by_name(operation(node))
    return found


def operation(node: fx.Node) -> str:
    """The name of a node's operation, without namespace and overload."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return target.overloadpacket.__name__
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def _planning(graph: fx.Graph) -> set[fx.Node]:
    """In-place writes to plans, and what is read by nothing but planning."""
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op not in ("call_function", "call_method"):
            continue
        writes = operation(node).endswith("_") and any(map(_is_buffer, node.all_input_nodes))
        read = bool(node.users) and all(u in found or _only_index(node, u) for u in node.users)
        if writes or read:
            found.add(node)
    return found


def _only_index(node: fx.Node, user: fx.Node) -> bool:
    """Whether `user` reads `node` as an index and as nothing else."""
    place = _INDEXED.get(operation(user).rstrip("_"))
    if place is None or len(user.args) <= place:
        return False
    others = [arg for at, arg in enumerate(user.args) if at != place]
    return node not in _nodes(others) and node in _nodes(user.args[place])


def _nodes(item: Any) -> list[fx.Node]:
    if isinstance(item, fx.Node):
        return [item]
    if isinstance(item, list | tuple):
        return [node for part in item for node in _nodes(part)]
    return []


def _is_buffer(node: fx.Node) -> bool:
    """Of a merged graph: one of its own, or what it keeps between calls, which is an input."""
    return node.op in ("get_attr", "placeholder") and str(node.target).startswith(_BUFFERS)


def by_name(name: str) -> str:
    """The part of an operation that neither merges nor plans."""
    for part, names in _BY_NAME:
        if any(known in name for known in names):
            return part
    return "other"


def _size(node: fx.Node) -> int:
    value = node.meta.get("val", node.meta.get("example_value"))
    return math.prod(value.shape) if isinstance(value, torch.Tensor) else 0
