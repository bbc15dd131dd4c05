"""Within pass 1: writes into tensors that the graph made itself become values.

Why: rotary embeddings are often written by halves into an empty tensor, and streams are joined by
writing them into zeros. A write has no layout rule: it is seen through every view of its tensor.
As a value, `slice_scatter`, it is an operation like any other.

Before, on `[2, 288, 4, 16]`:

    out = empty_like(q);  even = slice(out, 3, 0, max, 2);  copy_(even, a);  view(out, …)

After:

    out = empty_like(q);  new = slice_scatter(out, a, 3, 0, max, 2);         view(new, …)

A tensor stays as it is where it comes from outside, or where one of its views or writes cannot be
said so: writes into it remain, and the rules refuse them by name.

Precondition: the graph is traced; values share storage where tensors would.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef

from toma_fx.passes.graph.emit import Emitter
from toma_fx.passes.graph.nodes import (
    aten,
    is_getitem,
    is_tensor,
    is_view,
    map_leaves,
    shape,
    writes,
)


def fresh_writes_to_values(gm: fx.GraphModule, mode: FakeTensorMode) -> None:
    """Replace the writes of a traced graph, tensor by tensor, where all of a tensor's can be."""
    if not any(writes(node) for node in gm.graph.nodes):
        return
    for aliases in _fresh_and_written(gm.graph):
        if all(_can_be_said(node, aliases) for node in aliases):
            _Versions(gm, mode, aliases).run()


def _fresh_and_written(graph: fx.Graph) -> list[dict[fx.Node, None]]:
    """Nodes of one storage each, in graph order, where the graph made it and writes to it."""
    found: dict[StorageWeakRef, dict[fx.Node, None]] = {}
    for node in graph.nodes:
        storage = _storage(node.meta.get("val"))
        if storage is not None:
            found.setdefault(storage, {})[node] = None
    return [
        nodes
        for nodes in found.values()
        if next(iter(nodes)).op == "call_function" and any(writes(node) for node in nodes)
    ]


def _storage(value: object) -> StorageWeakRef | None:
    """Where a value lies, or the first of several; None for what has no such place."""
    first = value[0] if isinstance(value, tuple | list) and value else value
    try:
        return StorageWeakRef(first.untyped_storage()) if isinstance(first, Tensor) else None
    except NotImplementedError:  # wrapped tensors: sparse, batched by vmap
        return None


def _can_be_said(node: fx.Node, aliases: dict[fx.Node, None]) -> bool:
    if node is next(iter(aliases)):
        return is_tensor(node) and not writes(node)
    if not node.args or node.args[0] not in aliases:
        return False
    if not writes(node):
        return is_view(node) or is_getitem(node) or node.target in _ITSELF
    target = node.args[0]
    while target.args and target.args[0] in aliases:
        if not writes(target) and target.target not in _VIEWS:
            return False
        target = target.args[0]
    return is_tensor(node) and _as_value(node.target) is not None


def _as_value(write: Any) -> Callable[..., Any] | None:
    """`add_.Tensor` to `add.Tensor`; None for those without such a twin, or that draw numbers."""
    schema = getattr(write, "_schema", None)
    name = "" if schema is None else schema.name.removeprefix("aten::")
    random = torch.Tag.nondeterministic_seeded in getattr(write, "tags", ())
    if schema is None or not name.endswith("_") or "::" in name or random:
        return None
    twin = getattr(getattr(aten, name[:-1], None), schema.overload_name or "default", None)
    return twin if twin is None or len(twin._schema.returns) == 1 else None


class _Versions:
    """A tensor as it stands at each point of the graph; its views are made anew after a write.

    Args:
        gm: edited.
        mode: in which new nodes get their values.
        aliases: the nodes of one storage, the tensor itself first.
    """

    def __init__(
        self, gm: fx.GraphModule, mode: FakeTensorMode, aliases: dict[fx.Node, None]
    ) -> None:
        self._graph = gm.graph
        self._emit = Emitter(gm, gm.graph, mode)
        self._aliases = aliases
        self._root = next(iter(aliases))
        # What shows the tensor as it is at this point; after a write, its new value alone.
        self._current = {alias: alias for alias in aliases}

    def run(self) -> None:
        for node in sorted({user for alias in self._aliases for user in alias.users}):
            with self._graph.inserting_before(node):
                if node not in self._aliases:
                    node.args = map_leaves(node.args, self._now)
                    node.kwargs = map_leaves(dict(node.kwargs), self._now)
                elif writes(node):
                    self._write(node)
        for node in reversed(self._aliases):
            if not node.users:
                self._graph.erase_node(node)

    def _now(self, item: Any) -> Any:
        """An alias as it is seen here; anything else as it is."""
        if not isinstance(item, fx.Node) or item not in self._aliases:
            return item
        if item not in self._current:
            source = self._now(item.args[0])
            if not writes(item):
                source = self._emit.call(
                    item.target, (source, *item.args[1:]), item.kwargs, like=item
                )
            self._current[item] = source
        return self._current[item]

    def _write(self, node: fx.Node) -> None:
        view: fx.Node = node.args[0]
        value = self._written(node)
        while view is not self._root:
            whole: fx.Node = view.args[0]
            if not writes(view):
                value = _VIEWS[view.target](self._emit, self._now(whole), view, value)
            view = whole
        before = self._now(self._root)
        if value.meta["val"].stride() != before.meta["val"].stride():
            # Views that are taken later count on the strides.
            value = self._emit.call(aten.copy.default, (before, value), like=node)
        self._current = {self._root: value}

    def _written(self, node: fx.Node) -> fx.Node:
        """What a write leaves in the part that it writes to."""
        before = self._now(node.args[0])
        args = map_leaves(tuple(node.args[1:]), self._now)
        if node.target in (aten.copy_.default, aten.fill_.Tensor):
            value = args[0]
        elif node.target in (aten.fill_.Scalar, aten.zero_.default):
            value = self._emit.call(aten.full_like.default, (before, *(args or (0,))), like=node)
        else:
            kwargs = map_leaves(dict(node.kwargs), self._now)
            twin = _as_value(node.target)
            assert twin is not None
            value = self._emit.call(twin, (before, *args), kwargs, like=node)
        wanted, given = before.meta["val"], value.meta["val"]
        if given.device != wanted.device:
            return self._emit.call(aten.copy.default, (before, value), like=node)
        if given.dtype != wanted.dtype:
            value = self._emit.call(aten.to.dtype, (value, wanted.dtype), like=node)
        if given.shape != wanted.shape:
            value = self._emit.call(aten.expand.default, (value, list(shape(before))), like=node)
        return value


_Undo = Callable[[Emitter, fx.Node, fx.Node, fx.Node], fx.Node]


def _scatter(target: Any) -> _Undo:
    """The view shows a part: the value takes its place in the whole."""
    return lambda emit, whole, view, value: emit.call(
        target, (whole, value, *view.args[1:]), view.kwargs, like=view
    )


def _same(emit: Emitter, whole: fx.Node, view: fx.Node, value: fx.Node) -> fx.Node:
    return value


def _reshaped(emit: Emitter, whole: fx.Node, view: fx.Node, value: fx.Node) -> fx.Node:
    """The view shows all elements in another shape."""
    return emit.call(aten.reshape.default, (value, list(shape(whole))), like=view)


def _transposed(emit: Emitter, whole: fx.Node, view: fx.Node, value: fx.Node) -> fx.Node:
    return emit.call(aten.transpose.int, (value, *view.args[1:]), like=view)


def _permuted(emit: Emitter, whole: fx.Node, view: fx.Node, value: fx.Node) -> fx.Node:
    dims = [dim % len(shape(view)) for dim in view.args[1]]
    inverse = [dims.index(axis) for axis in range(len(dims))]
    return emit.call(aten.permute.default, (value, inverse), like=view)


# Operations that may return their operand; they do where both have one storage.
_ITSELF = (
    aten.alias.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.dropout.default,
    aten.to.device,
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.to.other,
    aten.type_as.default,
)
_REFOLDING = (
    aten.flatten.using_ints,
    aten.reshape.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unflatten.int,
    aten.unsqueeze.default,
    aten.view.default,
)
# What puts a changed view back into the tensor that it shows. Other views can be read, not written.
_VIEWS: dict[Any, _Undo] = {
    aten.slice.Tensor: _scatter(aten.slice_scatter.default),
    aten.select.int: _scatter(aten.select_scatter.default),
    aten.transpose.int: _transposed,
    aten.permute.default: _permuted,
    **dict.fromkeys(_REFOLDING, _reshaped),
    **dict.fromkeys(_ITSELF, _same),
}
