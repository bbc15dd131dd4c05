"""Pass 6: check the rewritten graph before any compiler sees it.

Why: a wrong image is never the price of a speedup. What is checked costs milliseconds; what it
would catch costs a picture.

Precondition: both graphs carry fake values.
"""

from __future__ import annotations

from typing import Any

import torch
from toma_fx.passes.graphs import shape
from torch import fx

from toma_fx.errors import CannotRewrite


def verify(before: fx.GraphModule, after: fx.GraphModule) -> None:
    """Same inputs, same outputs (shape, dtype, device, stride), and a well-formed graph.

    Raises:
        CannotRewrite: something differs; the whole graph then stays as it was.
    """
    after.graph.lint()
    if _inputs(before) != _inputs(after):
        raise CannotRewrite("the rewritten graph has other inputs")
    for old, new in zip(_outputs(before), _outputs(after), strict=True):
        if _facts(old) != _facts(new):
            raise CannotRewrite(f"an output became {_facts(new)}, not {_facts(old)}")
    for node in after.graph.nodes:
        if node.op == "call_function" and "val" not in node.meta:
            raise CannotRewrite(f"{node.name} was built without a value", node)


def _inputs(gm: fx.GraphModule) -> list[tuple[Any, ...]]:
    return [(node.name, shape(node)) for node in gm.graph.find_nodes(op="placeholder")]


def _outputs(gm: fx.GraphModule) -> list[Any]:
    output = next(iter(gm.graph.find_nodes(op="output")))
    flat, _ = torch.utils._pytree.tree_flatten(output.args[0])
    return flat


def _facts(item: Any) -> tuple[Any, ...]:
    value = item.meta.get("val") if isinstance(item, fx.Node) else item
    if not isinstance(value, torch.Tensor):
        return (value,)
    return tuple(value.shape), tuple(value.stride()), value.dtype, value.device
