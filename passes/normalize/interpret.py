"""Interpreters that trace Dynamo's graph, and keep what ATen alone would not show."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from toma_fx.passes.normalize.numbers import Numbers

# Choosing a kernel for `scaled_dot_product_attention` is state of the process while it is traced.
_CHOICES = (torch.nn.attention._backend_from_string, torch.nn.attention._sdpa_kernel)
for _choice in _CHOICES:
    fx.node.has_side_effect(_choice)  # or they would be removed as dead code
_FLEX = torch.ops.higher_order.flex_attention
# Block sizes of a mask that was not given: one block holds everything.
_ONE_BLOCK = 1 << 30


class Tracing(fx.Interpreter):
    """Runs a graph under `make_fx`.

    Choices of an attention kernel are kept as nodes, so that the compiler behind finds them where
    they stood. FlexAttention without score function and mask is what it computes, a
    `scaled_dot_product_attention`.
    """

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self._choices: dict[fx.Node, fx.Node] = {}
        self._numbers = Numbers()

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "call_function" and n.target in _CHOICES:
            self._keep(n)
        if n.target is _FLEX and _is_plain(n, self.module):
            query, key, value = (self.env[arg] for arg in n.args[:3])
            result = F.scaled_dot_product_attention(query, key, value, scale=n.args[5])
            return result, None, None
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if (tensor := self._numbers.follow(n, args, kwargs)) is not None:
            return tensor
        return self._numbers.begin(n, functools.partial(super().run_node, n), args)

    def _keep(self, node: fx.Node) -> None:
        mode = get_proxy_mode()
        if mode is None:
            return
        args = fx.node.map_arg(node.args, self._choices.__getitem__)
        kept = mode.tracer.create_node("call_function", node.target, args, node.kwargs)
        kept.meta["val"] = None
        self._choices[node] = kept


class Specialised(Tracing):
    """Runs a graph with the numbers that Dynamo saw, where it left them symbolic.

    Under `dynamic=True` Python floats (an epsilon, a dropout rate) arrive as tensors of which the
    graph takes the `item()`. Reading the number adds a guard on it.
    """

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "call_method" and n.target == "item":
            value = n.meta.get("example_value")
            if isinstance(value, torch.SymFloat):
                return float(value)
        return super().run_node(n)


def _is_plain(node: fx.Node, gm: fx.GraphModule) -> bool:
    """Whether a FlexAttention attends to every key alike, and only its result is read."""
    query, key, _value, score, mask = node.args[:5]
    sizes = [query.meta["example_value"].shape[1], key.meta["example_value"].shape[1]]
    if sizes[0] != sizes[1] or any(user.args[1] != 0 for user in node.users if user.users):
        return False
    return (
        _returns_first(getattr(gm, score.target))
        and mask[-3:-1] == (_ONE_BLOCK, _ONE_BLOCK)
        and _returns_ones(getattr(gm, mask[-1].target))
    )


def _returned(gm: fx.GraphModule) -> object:
    return gm.graph.output_node().args[0]


def _returns_first(gm: fx.GraphModule) -> bool:
    return _returned(gm) is next(iter(gm.graph.nodes))


def _returns_ones(gm: fx.GraphModule) -> bool:
    result = _returned(gm)
    return isinstance(result, fx.Node) and result.target in ("new_ones", torch.ones)
