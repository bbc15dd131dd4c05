"""Where token axes come from: which stream a hidden state belongs to, and its grid.

The layout rules, read backwards, lead from a node's axis to the operand axis that carries it, up
to an *origin*: a model input, or the reshape that folds a picture's sides into one axis. Text and
image differ in their origins, and the latent streams are those that reach the model's output.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch import fx

from toma_fx.errors import CannotRewrite
from toma_fx.passes.graph.inputs import Inputs
from toma_fx.passes.graph.nodes import aten, is_getitem, is_tensor, shape
from toma_fx.passes.layouts.layout import Origin, Segment, Step, TokenLayout
from toma_fx.passes.layouts.rules import apply_rule

Stream = tuple[Origin, ...]
_CATS = (aten.cat.default, aten.concat.default, aten.concatenate.default)
_SPLITS = (
    aten.split_with_sizes.default,
    aten.split.Tensor,
    aten.split.sizes,
    aten.chunk.default,
)
_FOLDS = (
    aten.view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten._unsafe_view.default,
)


_UNFOLDS = (*_FOLDS, aten.unflatten.int)


class Streams:
    """Answers, with memory, where token axes of one graph begin."""

    def __init__(self, graph: fx.Graph, inputs: Inputs) -> None:
        self._inputs = inputs
        self._known: dict[tuple[fx.Node, int], Stream] = {}
        # Keys of the origins whose token axis the output still has.
        self.reaching = self._reaching(graph)
        # Keys of the origins whose token axis is unfolded into sides again, as pictures are.
        self.unfolded = self._unfolding(graph)

    def of(self, node: fx.Node, axis: int) -> Stream:
        """The origins of an axis, in the order of its tokens."""
        path: list[tuple[fx.Node, int]] = []
        while (node, axis) not in self._known:
            path.append((node, axis))
            parent = self.carrier(node, axis)
            if parent is None:
                self._known[node, axis] = self._begin(node, axis)
                break
            node, axis = parent
        found = self._known[node, axis]
        for step in path:
            self._known[step] = found
        return found

    def carrier(self, node: fx.Node, axis: int) -> tuple[fx.Node, int] | None:
        """The operand axis whose tokens an axis carries; None at an origin, a join or a part."""
        size = shape(node)[axis]
        if node.op != "call_function" or size == 1 or (node.target in _CATS and _dim(node) == axis):
            return None
        for operand in self._operands(node):
            for candidate, length in enumerate(shape(operand)):
                if length == size and _carries(node, operand, candidate, axis):
                    return operand, candidate
        return None

    def _operands(self, node: fx.Node) -> list[fx.Node]:
        """Tensor operands, activations before tables: `positions + x` is of the stream of x."""
        source: fx.Node = node.args[0] if is_getitem(node) else node
        found = [operand for operand in source.all_input_nodes if is_tensor(operand)]
        return sorted(found, key=self._inputs.is_table)

    def _begin(self, node: fx.Node, axis: int) -> Stream:
        """A join, a part of a join, or an origin."""
        if node.target in _CATS and _dim(node) == axis:
            parts = [operand for operand in node.args[0] if shape(operand) != (0,)]
            return tuple(origin for part in parts for origin in self.of(part, axis))
        part = _part(node, axis)
        if part is not None:
            source, start, stop = part
            return _between(self.of(source, axis), start, stop)
        return (Origin(node, axis, shape(node)[axis], _folded(node, axis)),)

    def _reaching(self, graph: fx.Graph) -> set[tuple[str, int, int]]:
        found: set[tuple[str, int, int]] = set()
        output = next(iter(graph.find_nodes(op="output")))
        for result in output.all_input_nodes:
            for axis, size in enumerate(shape(result)[1:], 1):
                if size > 1:
                    found |= {origin.key for origin in self.of(*self._unfolded(result, axis))}
        return found

    def _unfolding(self, graph: fx.Graph) -> set[tuple[str, int, int]]:
        found: set[tuple[str, int, int]] = set()
        for node in graph.nodes:
            if node.target in _UNFOLDS:
                source = node.args[0]
                for axis in range(1, len(shape(source))):
                    if any(_before_unfold(node, side) == (source, axis) for side in _sides(node)):
                        found |= {origin.key for origin in self.of(source, axis)}
        return found

    def _unfolded(self, node: fx.Node, axis: int) -> tuple[fx.Node, int]:
        """Follow a picture's side back through the reshape that unfolds tokens into it."""
        while True:
            parent = self.carrier(node, axis) or _before_unfold(node, axis)
            if parent is None:
                return node, axis
            node, axis = parent


def _carries(node: fx.Node, operand: fx.Node, candidate: int, axis: int) -> bool:
    """Ask the forward rule whether tokens on `candidate` of `operand` end on `axis` of `node`."""
    layout = TokenLayout(candidate, None, (Segment(shape(operand)[candidate]),))
    try:
        if not is_getitem(node):
            result = _ask(node, operand, layout)
        else:
            results = _ask(node.args[0], operand, layout).layout
            result = Step(results[node.args[1]] if isinstance(results, tuple) else None)
    except CannotRewrite:
        return False
    found = result.layout
    return isinstance(found, TokenLayout) and (found.axis, found.length) == (axis, layout.length)


def _ask(node: fx.Node, operand: fx.Node, layout: TokenLayout) -> Step:
    return apply_rule(node, _Probe(operand, layout))


class _Probe:
    """A flow in which one operand carries unmerged tokens."""

    def __init__(self, operand: fx.Node, layout: TokenLayout) -> None:
        self._operand, self._layout = operand, layout

    def layout(self, node: object) -> TokenLayout | None:
        return self._layout if node is self._operand else None

    def results(self, node: fx.Node) -> tuple[TokenLayout | None, ...]:
        raise CannotRewrite("a probe stops at several results", node)

    def is_table(self, node: fx.Node, *, constant: bool) -> bool:
        return False

    def is_residual(self, node: fx.Node, axis: int, segments: tuple[Segment, ...]) -> bool:
        return False


def _dim(node: fx.Node) -> int:
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    return dim % len(shape(node))


def _part(node: fx.Node, axis: int) -> tuple[fx.Node, int, int] | None:
    """`(whole, start, stop)` if a node is a run of the tokens of another along `axis`."""
    if node.target is aten.slice.Tensor:
        defaults: list[Any] = [0, None, None, 1]
        source, dim, start, stop, step = list(node.args) + defaults[len(node.args) - 1 :]
        if dim % len(shape(node)) == axis and step == 1:
            first, last, _ = slice(start, stop).indices(shape(source)[axis])
            return source, first, last
    if is_getitem(node) and node.args[0].target in _SPLITS:
        split, index = node.args
        dim = split.args[2] if len(split.args) > 2 else split.kwargs.get("dim", 0)
        if dim % len(shape(node)) == axis:
            sizes = [int(part.shape[axis]) for part in split.meta["val"]]
            first = sum(sizes[:index])
            return split.args[0], first, first + sizes[index]
    return None


def _between(stream: Stream, start: int, stop: int) -> Stream:
    found, at = [], 0
    for origin in stream:
        first, last = max(start, at), min(stop, at + origin.length)
        if first < last:
            whole = last - first == origin.length
            found.append(
                replace(
                    origin,
                    length=last - first,
                    start=origin.start + first - at,
                    grid=origin.grid if whole else None,
                )
            )
        at += origin.length
    return tuple(found)


def _folded(node: fx.Node, axis: int) -> tuple[int, ...] | None:
    """The sides that a reshape folds into `axis`, `(height, width)` or with frames before."""
    if node.target not in _FOLDS:
        return None
    before, after = shape(node.args[0]), shape(node)
    at = math.prod(after[:axis])
    product = 1
    sides: list[int] = []
    for size in before:
        if product >= at and math.prod(sides) < after[axis] and size > 1:
            sides.append(size)
        product *= size
    if math.prod(sides) != after[axis] or len(sides) not in (1, 2, 3):
        return None
    return tuple(sides) if len(sides) > 1 else (1, *sides)


def _before_unfold(node: fx.Node, axis: int) -> tuple[fx.Node, int] | None:
    """The longer axis of which a reshape makes `axis` one side."""
    if node.target not in _UNFOLDS:
        return None
    source: fx.Node = node.args[0]
    after = shape(node)
    ahead, product = math.prod(after[:axis]), 1
    for index, size in enumerate(shape(source)):
        if product <= ahead < product * size and size > after[axis]:
            return source, index
        product *= size
    return None


def _sides(node: fx.Node) -> range:
    return range(1, len(shape(node)))
