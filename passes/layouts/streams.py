"""Where token axes come from: which stream a hidden state belongs to, and its grid.

The layout rules, read backwards, lead from a node's axis to the operand axis that carries it, up
to an *origin*: a model input, or the reshape that folds a picture's sides into one axis. Text and
image differ in their origins, and the latent streams are those that reach the model's output.
"""

from __future__ import annotations

import math
from dataclasses import replace

from torch import fx

from toma_fx.passes.graph.inputs import Inputs
from toma_fx.passes.graph.nodes import CATS, aten, cat_axis, is_getitem, is_tensor, part_of, shape
from toma_fx.passes.layouts.layout import Origin
from toma_fx.passes.layouts.origins import Cuts, Key, Stream, alike, between, common_start
from toma_fx.passes.layouts.rules.writes import written_range
from toma_fx.passes.layouts.ways import (
    UNFOLDS,
    before_unfold,
    carries,
    folded_sides,
    is_sequence,
    joined_items,
    joins_items,
    pads_items,
    reads_a_written_item,
    resized,
    sides_of_split,
    token_axes,
)

_SCATTERS = (aten.slice_scatter.default, aten.select_scatter.default)


class Streams:
    """Answers, with memory, where token axes of one graph begin."""

    def __init__(self, graph: fx.Graph, inputs: Inputs, cuts: Cuts | None = None) -> None:
        self._inputs = inputs
        self._cuts = cuts or {}
        self._known: dict[tuple[fx.Node, int], Stream] = {}
        # Where the way to the output unfolds a picture's tokens: the sides that it makes of them.
        self.sides: dict[Key, tuple[int, ...]] = {}
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
        joins = (node.target in CATS and cat_axis(node) == axis) or node.target in _SCATTERS
        joins = joins or reads_a_written_item(node) or joins_items(node, axis)
        if node.op != "call_function" or size == 1 or joins:
            return None
        for operand in self._operands(node):
            for candidate, length in enumerate(shape(operand)):
                if length == size and carries(node, operand, candidate, axis):
                    return operand, candidate
        return None

    def _operands(self, node: fx.Node) -> list[fx.Node]:
        """Tensor operands, activations before tables: `positions + x` is of the stream of x."""
        source: fx.Node = node.args[0] if is_getitem(node) else node
        found = [operand for operand in source.all_input_nodes if is_tensor(operand)]
        return sorted(found, key=self._inputs.is_table)

    def _begin(self, node: fx.Node, axis: int) -> Stream:
        """A join, a part of a join, or an origin."""
        if node.target in CATS and cat_axis(node) == axis:
            parts = [operand for operand in node.args[0] if shape(operand) != (0,)]
            return tuple(origin for part in parts for origin in self.of(part, axis))
        if node.target in _SCATTERS:
            written = self._written(node, axis)
            if written is not None:
                return written
        if joins_items(node, axis):
            found = self._of_joined_items(node, axis)
            if found is not None:
                return found
        if reads_a_written_item(node):
            return self._of_item(node.args[0], axis + 1, node.args[2] % shape(node.args[0])[0])
        part = part_of(node, axis)
        if part is not None:
            source, start, stop = part
            return between(self.of(source, axis), start, stop)
        return self._cut(Origin(node, axis, shape(node)[axis], self._grid(node, axis)))

    def _cut(self, origin: Origin) -> Stream:
        found, at = [], 0
        for piece in self._cuts.get(origin.key, ()):
            found.append(replace(origin, length=piece.length, grid=piece.grid, start=at))
            at += piece.length
        return tuple(found) or (origin,)

    def _grid(self, node: fx.Node, axis: int) -> tuple[int, ...] | None:
        """The sides that a reshape folds into an axis; a side may have been folded before."""
        found: list[int] = []
        for side, size in folded_sides(node, axis):
            origin = self.of(node.args[0], side)
            inner = origin[0].grid if len(origin) == 1 and origin[0].length == size else None
            found += inner or (size,)
        if not found and len(shape(node)) == 3 and axis == 2 and is_sequence(node):
            return (shape(node)[axis],)
        if len(found) == 1:
            found = [1, *found]
        return tuple(found) if len(found) in (2, 3) else None

    def _of_joined_items(self, node: fx.Node, axis: int) -> Stream | None:
        """The stream of items that were joined into a batch: the first's, if all are built alike.

        Their tokens may begin in several places, one for each item, but must lie at the same ones.
        Items that are padded may differ behind a part that is alike, as texts do behind pictures:
        what follows it is then a stream of its own.
        """
        parts = [part for part in joined_items(node, axis) if not self._inputs.constant(part[0])]
        found = [self.of(*part) for part in parts]
        common = common_start(found)
        at = sum(origin.length for origin in common)
        rest = shape(node)[axis] - at
        if not rest:
            return common
        pictures = any(origin.grid for origin in common)
        if not pictures or not pads_items(node):
            return None
        return (*common, Origin(node, axis, rest, start=at))

    def _written(self, node: fx.Node, axis: int) -> Stream | None:
        """The stream of a tensor of which a part is written; None where parts disagree.

        A part that is written across the tokens tells whose tokens they are, unless the rest holds
        others: items that are written one by one must all have the same.
        """
        whole, part = node.args[:2]
        dim, first, last, step = written_range(node)
        selects = node.target is aten.select_scatter.default
        if dim == axis:
            if selects or step != 1:
                return None
            around = self.of(whole, axis)
            ahead, behind = between(around, 0, first), between(around, last, shape(node)[axis])
            return (*ahead, *self.of(part, axis), *behind)
        if selects and dim == 0:
            return self._of_all_items(node, axis)
        found = self.of(part, axis - (selects and axis > dim))
        if self._inputs.constant(whole):
            return found
        return found if alike(found, self.of(whole, axis)) else None

    def _of_all_items(self, node: fx.Node, axis: int) -> Stream | None:
        """The stream of a batch that was written item by item, if all items have the same."""
        found = [self._of_item(node, axis, item) for item in range(shape(node)[0])]
        return found[0] if all(alike(found[0], other) for other in found) else None

    def _of_item(self, node: fx.Node, axis: int, item: int) -> Stream:
        """The stream of one item of a batch, by the last write to it."""
        while node.target is aten.select_scatter.default and written_range(node)[0] == 0:
            if written_range(node)[1] == item:
                return self.of(node.args[1], axis - 1)
            node = node.args[0]
        return self.of(node, axis)

    def _reaching(self, graph: fx.Graph) -> set[Key]:
        found: set[Key] = set()
        output = next(iter(graph.find_nodes(op="output")))
        for result in output.all_input_nodes:
            for axis, size in enumerate(shape(result)[1:], 1):
                if size > 1:
                    for side in self._unfolded(result, axis):
                        found |= {origin.key for origin in self.of(*side)}
        return found

    def _unfolding(self, graph: fx.Graph) -> set[Key]:
        found: set[Key] = set()
        for node in graph.nodes:
            if node.target in UNFOLDS:
                source = node.args[0]
                for axis in range(1, len(shape(source))):
                    if any(
                        before_unfold(node, side) == (source, axis) for side in token_axes(node)
                    ):
                        found |= {origin.key for origin in self.of(source, axis)}
        return found

    def _unfolded(self, node: fx.Node, axis: int) -> set[tuple[fx.Node, int]]:
        """Follow a picture's side back through reshapes, to the tokens that were unfolded into it.

        A side may be folded from rows of tokens and rows within a patch: both are followed.
        """
        found: set[tuple[fx.Node, int]] = set()
        seen, waiting = set(), [(node, axis)]
        while waiting:
            side = waiting.pop()
            if side in seen:
                continue
            seen.add(side)
            parent = self.carrier(*side) or before_unfold(*side) or resized(*side)
            folded = [] if parent else folded_sides(*side)
            if parent is not None:
                waiting.append(parent)
                self._remember_sides(side[0], *parent)
            else:
                waiting += [(side[0].args[0], index) for index, _ in folded]
                waiting += joined_items(*side) if joins_items(*side) else []
                found.add(side)
        return found

    def _remember_sides(self, node: fx.Node, source: fx.Node, axis: int) -> None:
        """The sides that a reshape makes of a picture's tokens, if it splits them into some."""
        sides = (
            sides_of_split(node, axis) if node.target in UNFOLDS and node.args[0] is source else ()
        )
        if len(sides) in (2, 3):
            stream = self.of(source, axis)
            if len(stream) == 1 and stream[0].length == math.prod(sides):
                self.sides[stream[0].key] = sides
