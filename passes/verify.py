"""Pass 6: check the rewritten graph before any compiler sees it.

Why: a wrong image is never the price of a speedup. What is checked costs milliseconds; what it
would catch costs a picture.

Precondition: both graphs carry fake values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from toma_fx.errors import CannotRewrite
from toma_fx.passes.graph.nodes import shape


def verify(before: fx.GraphModule, after: fx.GraphModule) -> None:
    """Same inputs, same outputs (shape, dtype, device, stride), and a well-formed graph.

    Raises:
        CannotRewrite: something differs; the whole graph then stays as it was.
    """
    try:
        after.graph.lint()
    except (RuntimeError, ValueError) as error:
        raise CannotRewrite(f"the rewritten graph is not well-formed: {error}") from error
    if _inputs(before) != _inputs(after):
        raise CannotRewrite("the rewritten graph has other inputs")
    given, found = _outputs(before), _outputs(after)
    if len(given) != len(found):
        raise CannotRewrite(f"the rewritten graph has {len(found)} outputs, not {len(given)}")
    for old, new in zip(given, found, strict=True):
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
    # The stride of an axis with a single element means nothing.
    strides = [s for s, size in zip(value.stride(), value.shape, strict=True) if size != 1]
    return tuple(value.shape), strides, value.dtype, value.device
