"""Layouts flowing forward from some nodes, one rule per operation."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import fx

from toma_fx.errors import CannotRewrite
from toma_fx.passes.graph.nodes import op_name, shape
from toma_fx.passes.layouts.analysis import Analysis
from toma_fx.passes.layouts.layout import Segment, Step, TokenLayout
from toma_fx.passes.layouts.ranks import refuse_beside_ranks
from toma_fx.passes.layouts.rules import apply_rule


class StepFlow:
    """The `Flow` that rules ask, and the steps that they answered.

    Args:
        analysis: facts of the graph.
        start: layouts of the nodes where the flow begins.
    """

    def __init__(self, analysis: Analysis, start: dict[fx.Node, TokenLayout]) -> None:
        self.steps: dict[fx.Node, Step] = {}
        self.layouts = dict(start)
        self._analysis = analysis

    def advance(self, node: fx.Node) -> Step:
        """Apply the node's rule and keep its answer.

        Raises:
            CannotRewrite: there is no rule, or it refuses.
        """
        step = apply_rule(node, self)
        refuse_beside_ranks(node, step, [self.layout(source) for source in node.all_input_nodes])
        self.steps[node] = step
        if isinstance(step.layout, TokenLayout):
            self.layouts[node] = step.layout
        return step

    def forget(self, node: fx.Node) -> None:
        """Take back the answer for a node."""
        self.steps.pop(node, None)
        self.layouts.pop(node, None)

    def layout(self, node: object) -> TokenLayout | None:
        return self.layouts.get(node) if isinstance(node, fx.Node) else None

    def results(self, node: fx.Node) -> tuple[TokenLayout | None, ...]:
        step = self.steps.get(node)
        if step is None or not isinstance(step.layout, tuple):
            raise CannotRewrite(f"{op_name(node)} has no results with tokens", node)
        return step.layout

    def is_table(self, node: fx.Node, *, constant: bool) -> bool:
        inputs = self._analysis.inputs
        return inputs.constant(node) if constant else inputs.is_table(node)

    def is_mask(self, node: fx.Node) -> bool:
        return self._analysis.inputs.is_computed_plainly(node)

    def is_residual(self, node: fx.Node, axis: int, segments: tuple[Segment, ...]) -> bool:
        return False


class Propagation(StepFlow):
    """A flow that follows some readers of its start to the end.

    Other readers see the start at full length: a block may add to the very tensor that it merges.

    Args:
        analysis: facts of the graph.
        start: where the flow begins.
        layout: of `start`, for the readers that are followed.
        readers: the nodes that read `start` merged.
        residual: whether a full-length operand, by an axis, is the stream to return to.
        end: a node whose readers see full length again; nothing may be followed past it.
        whole: nodes that read whatever they read at full length: nothing is followed into them.
    """

    def __init__(
        self,
        analysis: Analysis,
        start: fx.Node,
        layout: TokenLayout,
        readers: Iterable[fx.Node],
        residual: Callable[[fx.Node, int, tuple[Segment, ...]], bool],
        end: fx.Node | None = None,
        whole: Iterable[fx.Node] = (),
    ) -> None:
        super().__init__(analysis, {start: layout})
        self._start = start
        self._readers = frozenset(readers)
        self._reader: fx.Node | None = None
        self._residual = residual
        self._end = end
        self._whole = frozenset(whole)
        self._items = shape(start)[0]

    def advance(self, node: fx.Node) -> Step:
        self._reader = node
        return super().advance(node)

    def layout(self, node: object) -> TokenLayout | None:
        if node is self._start and self._reader not in self._readers:
            return None
        return super().layout(node)

    def run(self) -> None:
        """Follow the readers in graph order until every layout has reached an end.

        Raises:
            CannotRewrite: a reader has no rule, its rule refuses, or it comes after the end.
        """
        position = self._analysis.position
        waiting = set(self._readers)
        while waiting:
            node = min(waiting, key=position.__getitem__)
            waiting.remove(node)
            if self._end is not None and position[node] > position[self._end]:
                raise CannotRewrite(f"{op_name(node)} reads merged tokens after the end", node)
            step = self.advance(node)
            self._keep_items_apart(node, step)
            if step.exit is None and step.layout is not None and node is not self._end:
                waiting.update(user for user in node.users if user not in self._whole)

    def is_residual(self, node: fx.Node, axis: int, segments: tuple[Segment, ...]) -> bool:
        return self._residual(node, axis, segments)

    def _keep_items_apart(self, node: fx.Node, step: Step) -> None:
        """Every item has its own destinations, so its axis must stay known to the exit."""
        found = step.layout if isinstance(step.layout, tuple) else (step.layout,)
        if self._items > 1 and any(layout is not None and layout.batch is None for layout in found):
            raise CannotRewrite(f"{op_name(node)} folds the batch into another axis", node)
