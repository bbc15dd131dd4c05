"""Building graphs: nodes with fake values, and traced functions inlined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.fx.experimental.proxy_tensor import make_fx

from toma_fx.passes.graph.nodes import map_leaves


class Emitter:
    """Appends to a graph. Every node gets its fake value, computed as it is made."""

    def __init__(self, root: fx.GraphModule, graph: fx.Graph, mode: FakeTensorMode) -> None:
        self.root = root
        self.graph = graph
        self._mode = mode
        self._traced: dict[tuple[Any, ...], fx.GraphModule] = {}
        self._kept: dict[object, Any] = {}

    def once(self, key: object, make: Callable[[], Any]) -> Any:
        """What `make` appends the first time that a key is asked for: nodes that are shared."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def call(
        self, target: Callable[..., Any], args: Any, kwargs: Any = None, like: fx.Node | None = None
    ) -> fx.Node:
        """One call; metadata (module path, stack trace) comes from `like`."""
        kwargs = kwargs or {}
        node = self.graph.call_function(target, args, kwargs)
        if like is not None:
            node.meta = {key: item for key, item in like.meta.items() if key != "val"}
        with self._mode:
            node.meta["val"] = target(*map_leaves(args, value_of), **map_leaves(kwargs, value_of))
        return node

    def inline(self, fn: Callable[..., Any], *args: Any, like: fx.Node | None = None) -> Any:
        """Trace `fn` on the fake values of the node arguments and append what it does.

        Traces are kept: equal shapes and constants are traced once.
        """
        nodes = [arg for arg in args if isinstance(arg, fx.Node)]
        constants = tuple(fx.Node if isinstance(arg, fx.Node) else arg for arg in args)
        key = (fn, constants, *(_signature(node) for node in nodes))
        if key not in self._traced:
            self._traced[key] = self._trace(fn, args)
        copies = dict(zip(self._traced[key].graph.find_nodes(op="placeholder"), nodes, strict=True))
        result = self.graph.graph_copy(self._traced[key].graph, copies)
        if like is not None:
            for old, new in copies.items():
                if old.op == "call_function":
                    _adopt(new, like)
        return result

    def _trace(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> fx.GraphModule:
        def on_nodes(*values: Any) -> Any:
            given = iter(values)
            return fn(*(next(given) if isinstance(arg, fx.Node) else arg for arg in args))

        # The tracer knows its inputs by identity, and copies of one trace share their values.
        with self._mode, torch.no_grad():
            values = [value_of(arg).detach() for arg in args if isinstance(arg, fx.Node)]
        tracer = make_fx(on_nodes, pre_dispatch=True, tracing_mode="fake")
        with torch.no_grad():
            return tracer(*values)

    def buffer(self, name: str, make: Callable[[], Tensor]) -> fx.Node:
        """A new buffer of the graph module, and the node that reads it."""
        with unset_fake_temporarily():
            value = make()
        self.root.register_buffer(name, value)
        node = self.graph.get_attr(name)
        node.meta["val"] = self._mode.from_tensor(value, static_shapes=True)
        return node


def value_of(item: Any) -> Any:
    """A node's fake value; anything else as it is."""
    return item.meta["val"] if isinstance(item, fx.Node) else item


def _signature(node: fx.Node) -> tuple[Any, ...]:
    value = node.meta["val"]
    return tuple(value.shape), tuple(value.stride()), value.dtype, value.device


def _adopt(node: fx.Node, like: fx.Node) -> None:
    for key in ("nn_module_stack", "stack_trace", "source_fn_stack"):
        if key in like.meta:
            node.meta[key] = like.meta[key]
