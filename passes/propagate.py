"""Layouts flowing forward from some nodes, one rule per operation."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from toma_fx.passes.analysis import Analysis
from toma_fx.passes.graphs import op_name
from toma_fx.passes.layout import Step, TokenLayout
from toma_fx.passes.rules import find_rule
from torch import fx

from toma_fx.errors import CannotRewrite

Residual = Callable[[fx.Node, int], bool]


class Propagation:
    """The `Flow` that rules ask, and the steps that they answered.

    Args:
        analysis: facts of the graph.
        start: layouts of the nodes where the flow begins.
        residual: whether a full-length operand, by an axis, is the stream to return to.
    """

    def __init__(
        self, analysis: Analysis, start: dict[fx.Node, TokenLayout], residual: Residual
    ) -> None:
        self.steps: dict[fx.Node, Step] = {}
        self._analysis = analysis
        self._start = start
        self._residual = residual

    def run(
        self,
        readers: Iterable[fx.Node],
        refused: Callable[[fx.Node, CannotRewrite], None] | None = None,
    ) -> None:
        """Follow the readers in graph order until every layout has reached an end.

        Args:
            readers: the first nodes that read the start.
            refused: called where a rule refuses; the flow ends there.

        Raises:
            CannotRewrite: a rule refuses and there is no `refused`.
        """
        position = self._analysis.position
        waiting = set(readers)
        while waiting:
            node = min(waiting, key=position.__getitem__)
            waiting.remove(node)
            try:
                step = find_rule(node)(node, self)
            except CannotRewrite as refusal:
                if refused is None:
                    raise
                refused(node, refusal)
                continue
            self.steps[node] = step
            if step.exit is None and step.layout is not None:
                waiting.update(node.users)

    def layout(self, node: object) -> TokenLayout | None:
        if node in self._start:
            return self._start[node]
        step = self.steps.get(node) if isinstance(node, fx.Node) else None
        layout = step.layout if step is not None else None
        return layout if isinstance(layout, TokenLayout) else None

    def results(self, node: fx.Node) -> tuple[TokenLayout | None, ...]:
        step = self.steps.get(node)
        if step is None or not isinstance(step.layout, tuple):
            raise CannotRewrite(f"{op_name(node)} has no results with tokens", node)
        return step.layout

    def is_table(self, node: fx.Node, *, constant: bool) -> bool:
        inputs = self._analysis.inputs
        return inputs.constant(node) if constant else inputs.is_table(node)

    def is_residual(self, node: fx.Node, axis: int) -> bool:
        return self._residual(node, axis)
