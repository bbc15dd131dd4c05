"""After the passes: one graph for batches of every size, from the graphs for two of them.

Why: the passes read static sizes, and sizes that are a matter of the batch are everywhere: in
views, in the plans, in what the guard reads. But they grow evenly with it, so that two graphs tell
them from all others.

Before: `view(x, [2, 256, 64])` for 2 items, and `view(x, [1020, 256, 64])` for 1,020; after:
`view(x, [sym_size(input, 0), 256, 64])`. What the graph keeps gets a size for each batch likewise.

Precondition: both graphs come of one, and merge the same regions. Whatever compiles the result
guards on what it assumes of the batch.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import SymInt, Tensor, fx
from torch._guards import detect_fake_mode

from toma_fx.errors import CannotRewrite
from toma_fx.passes.graph.nodes import aten, map_leaves
from toma_fx.passes.rewrite.lift import kept_by


@dataclass(frozen=True)
class Size:
    """A size that grows with the batch: `fixed + items · batch`."""

    fixed: int
    items: int = 0

    def at(self, batch: Any) -> Any:
        """For so many items, a number or a symbol."""
        return self.fixed + self.items * batch if self.items else self.fixed


Sizes = Mapping[str, tuple[Size, ...]]
"""Of what a graph keeps, by name."""


@dataclass(frozen=True)
class Batched:
    """A graph that serves batches of every size.

    Attributes:
        place: of an input whose first axis is the batch.
        size: of the batch that the graph's own tensors are made for.
        sizes: of what it keeps.
    """

    place: int
    size: int
    sizes: Sizes


class Generaliser:
    """Makes a graph for one batch, in place, one for all.

    Args:
        graphs: of one model, for two batches.
        batches: their sizes.
        inputs: of the graph, with the batch as a symbol.
        place: of one whose first axis is the batch.
    """

    def __init__(
        self,
        graphs: tuple[fx.GraphModule, fx.GraphModule],
        batches: tuple[int, int],
        inputs: Sequence[Any],
        place: int,
    ) -> None:
        self._one, self._other = graphs
        self._batches = batches
        self._inputs = inputs
        self._place = place
        self._twins: dict[fx.Node, fx.Node] = {}

    def run(self) -> Batched:
        """Nothing is changed where it cannot be done.

        Raises:
            CannotRewrite: the graphs differ in more than sizes that grow with the batch.
        """
        nodes = list(self._one.graph.nodes), list(self._other.graph.nodes)
        if len(nodes[0]) != len(nodes[1]):
            raise CannotRewrite("another batch has another graph")
        changes = [self._compared(*pair) for pair in zip(*nodes, strict=True)]
        sizes = self._kept_sizes()
        self._symbolise(changes)
        self._give_values(sizes)
        self._one.graph.lint()
        self._one.recompile()
        return Batched(self._place, self._batches[0], sizes)

    def _compared(self, one: fx.Node, other: fx.Node) -> tuple[fx.Node, Any, Any]:
        """A node and its arguments, with a `Size` where they grow with the batch."""
        self._twins[one] = other
        if one.op != other.op or (one.op != "placeholder" and one.target != other.target):
            raise CannotRewrite("another batch has another graph", one)
        if one.op == "call_module":
            raise CannotRewrite("a module is called whose sizes nobody sees", one)
        if one.op == "get_attr":
            self._check_constant(one)
        kwargs = dict(one.kwargs), dict(other.kwargs)
        return one, self._merged((one.args, other.args), one), self._merged(kwargs, one)

    def _merged(self, pair: tuple[Any, Any], node: fx.Node) -> Any:
        one, other = pair
        if isinstance(one, fx.Node):
            if self._twins.get(one) is other:
                return one
        elif isinstance(one, list | tuple) and type(one) is type(other) and len(one) == len(other):
            return type(one)(self._merged(both, node) for both in zip(one, other, strict=True))
        elif isinstance(one, dict) and isinstance(other, dict) and [*one] == [*other]:
            return {key: self._merged((one[key], other[key]), node) for key in one}
        elif isinstance(one, slice) and isinstance(other, slice):
            parts = ((getattr(one, p), getattr(other, p)) for p in ("start", "stop", "step"))
            return slice(*(self._merged(both, node) for both in parts))
        elif type(one) is int and type(other) is int and one != other:
            return self._size(one, other, node)
        elif type(one) is type(other) and (
            one == other or (one != one and other != other)
        ):  # or both are NaN
            return one
        raise CannotRewrite("it differs in more than sizes for another batch", node)

    def _size(self, one: int, other: int, node: fx.Node | None = None) -> Size:
        first, second = self._batches
        items, rest = divmod(other - one, second - first)
        if rest:
            raise CannotRewrite("a size does not grow evenly with the batch", node)
        return Size(one - items * first, items)

    def _check_constant(self, node: fx.Node) -> None:
        """Constants are the same for every batch; what is kept has a size for each."""
        one, other = (operator.attrgetter(str(node.target))(gm) for gm in (self._one, self._other))
        if isinstance(one, fx.GraphModule):
            raise CannotRewrite("a graph is called whose sizes nobody sees", node)
        alike = isinstance(one, Tensor) and one.shape == other.shape
        if isinstance(one, Tensor) and not alike and node.target not in kept_by(self._one):
            raise CannotRewrite("a constant is another one for another batch", node)

    def _kept_sizes(self) -> Sizes:
        one, other = kept_by(self._one), kept_by(self._other)
        if one.keys() != other.keys():
            raise CannotRewrite("another batch keeps something else")
        shapes = {name: (held.shape, other[name].shape) for name, held in one.items()}
        return {
            name: tuple(self._size(*both) for both in zip(*pair, strict=True))
            for name, pair in shapes.items()
        }

    def _symbolise(self, changes: Sequence[tuple[fx.Node, Any, Any]]) -> None:
        graph = self._one.graph
        placeholders = graph.find_nodes(op="placeholder")
        made: dict[Size, fx.Node] = {}

        def node_of(size: Size) -> fx.Node:
            if size not in made:
                part: fx.Node = made.get(Size(0, 1)) or emit(
                    aten.sym_size.int, (placeholders[self._place], 0)
                )
                made[Size(0, 1)] = part
                if size.items != 1:
                    part = emit(operator.mul, (part, size.items))
                made[size] = emit(operator.add, (part, size.fixed)) if size.fixed else part
            return made[size]

        first = next(node for node in graph.nodes if node.op != "placeholder")

        def emit(target: Any, args: Any) -> fx.Node:
            with graph.inserting_before(first):
                return graph.call_function(target, args)

        def replaced(leaf: Any) -> Any:
            return node_of(leaf) if isinstance(leaf, Size) else leaf

        for node, args, kwargs in changes:
            node.args, node.kwargs = map_leaves(args, replaced), map_leaves(kwargs, replaced)

    def _give_values(self, sizes: Sizes) -> None:
        """Symbolic values to what enters the graph; those of other nodes are of one batch only."""
        batch: SymInt = self._inputs[self._place].shape[0]
        mode = detect_fake_mode(self._inputs)
        assert mode is not None
        values = iter(self._inputs)
        for node in self._one.graph.nodes:
            if node.op == "placeholder":
                node.meta["val"] = next(values)
            elif node.op == "get_attr" and node.target in sizes:
                held = operator.attrgetter(str(node.target))(self._one)
                shape = [size.at(batch) for size in sizes[node.target]]
                with mode:
                    node.meta["val"] = torch.empty(shape, dtype=held.dtype, device=held.device)
            elif node.op == "call_function":
                node.meta.pop("val", None)
