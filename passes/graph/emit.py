"""Building graphs: nodes with fake values, and traced functions inlined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._pytree import tree_map_only

from toma_fx.passes.graph.nodes import map_leaves
from toma_fx.passes.graph.traces import Kind, trace


class Emitter:
    """Appends to a graph. Every node gets its fake value, computed as it is made.

    Args:
        root: of the graph.
        graph: where nodes go.
        mode: of their values.
        runs: whether the graph will be run; else what it keeps takes no memory.
    """

    def __init__(
        self, root: fx.GraphModule, graph: fx.Graph, mode: FakeTensorMode, runs: bool = True
    ) -> None:
        self.root = root
        self.graph = graph
        self._mode = mode
        self._runs = runs
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
        """Trace `fn` on the kinds of the node arguments and append what it does.

        Traces are kept: equal shapes and constants are traced once.
        """
        nodes = [arg for arg in args if isinstance(arg, fx.Node)]
        kinds = (Kind.of(value_of(arg)) if isinstance(arg, fx.Node) else arg for arg in args)
        traced = trace(fn, *kinds).graph
        copies = dict(zip(traced.find_nodes(op="placeholder"), nodes, strict=True))
        result = self.graph.graph_copy(traced, copies)
        values = self.once(traced, lambda: self._values(traced))
        for old, value in values.items():
            copies[old].meta["val"] = value
            if like is not None:
                _adopt(copies[old], like)
        return result

    def _values(self, traced: fx.Graph) -> dict[fx.Node, Any]:
        """Fake values of this compile for the calls of a trace; all copies share them."""
        with self._mode:
            return {
                node: tree_map_only(Tensor, lambda value: Kind.of(value).empty(), node.meta["val"])
                for node in traced.nodes
                if node.op == "call_function"
            }

    def buffer(self, name: str, make: Callable[[], Tensor], kept: bool = False) -> fx.Node:
        """A new buffer of the graph module, and the node that reads it.

        Args:
            name: of the buffer.
            make: its value.
            kept: it may be large, and nothing reads its value before the graph runs.
        """
        fake = kept and not self._runs
        with self._mode if fake else unset_fake_temporarily():
            value = make()
        self.root.register_buffer(name, value)
        node = self.graph.get_attr(name)
        node.meta["val"] = value if fake else self._mode.from_tensor(value, static_shapes=True)
        return node


def value_of(item: Any) -> Any:
    """A node's fake value; anything else as it is."""
    return item.meta["val"] if isinstance(item, fx.Node) else item


def _adopt(node: fx.Node, like: fx.Node) -> None:
    for key in ("nn_module_stack", "stack_trace", "source_fn_stack"):
        if key in like.meta:
            node.meta[key] = like.meta[key]
