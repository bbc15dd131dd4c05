"""Pass 4: keep the residual stream in window order, instead of gathering at every region.

Why: norms, linears, attention and residual additions do not care in which order tokens stand. So
the order is a property of the layout too. Permuting the stream once where a stage begins and back
where it ends removes a gather from every merge and from every unmerge: on a GPU each is a launch
and a pass over the hidden states that nothing can fuse with the norm before it.

Before, at each region: `norm → gather(order) → merge … unmerge → gather(inverse) → add`.
After: `gather(order)` at the stage's first addition's residual, views in between, and
`gather(inverse)` where an operation wants the natural order (the reshape to a picture, the output).

The proof is the rule table again, for a layout whose tokens are permuted instead of merged:
position tables are read in window order, and where a rule refuses the natural order comes back.

Precondition: `plan` has run. Windows with pads are left alone: their slots are no permutation.
"""

from __future__ import annotations

from torch import fx

from toma_fx.errors import CannotRewrite
from toma_fx.passes.find.region import Group, Region
from toma_fx.passes.graph.nodes import is_getitem, shape
from toma_fx.passes.layouts.analysis import Analysis
from toma_fx.passes.layouts.layout import TokenLayout
from toma_fx.passes.layouts.propagate import StepFlow
from toma_fx.passes.methods import METHODS


class Stage(StepFlow):
    """A residual stream in window order.

    Attributes:
        group: whose order it is.
        start: the node whose tokens are permuted first.
        steps: how each permuted node outside regions runs on permuted operands.
        layouts: the permuted nodes: `start`, those of `steps`, and exits of regions.
    """

    def __init__(
        self, analysis: Analysis, group: Group, start: fx.Node, layout: TokenLayout
    ) -> None:
        super().__init__(analysis, {start: layout})
        self.group = group
        self.start = start


def hoist(analysis: Analysis, groups: list[Group]) -> list[Stage]:
    """One stage for every planned stream whose order is a permutation."""
    if analysis.writes:  # a write would reach one of two copies, in natural and in window order
        return []
    streams: dict[object, list[Group]] = {}
    for group in groups:
        origin = group.regions[0].origin
        assert origin is not None
        # Keys of all tokens are read in natural order: they would be put back one by one.
        if METHODS[group.method].hoists and not any(region.keys for region in group.regions):
            streams.setdefault(origin.key, []).append(group)
    found = [_stage(analysis, members) for members in streams.values()]
    return [stage for stage in found if stage is not None]


def _stage(analysis: Analysis, groups: list[Group]) -> Stage | None:
    regions = [region for group in groups for region in group.units]
    first = groups[0]
    start, layout = regions[0].stream, regions[0].layout
    alike = all((g.order, g.positions) == (first.order, first.positions) for g in groups)
    if not first.reorders or first.windows.pads or not alike or layout is None or start is None:
        return None
    if first.positions and analysis.position[first.positions.node] > analysis.position[start]:
        return None
    if len(shape(start)) != 3 or shape(start)[1] != layout.length:
        return None
    if any(step.stream for region in regions for step in region.steps.values()):
        return None  # gates and modulation would have to be brought into window order as well
    stage = Stage(analysis, first, start, layout)
    owner = {node: region for region in regions for node in region.steps}
    for node in list(analysis.graph.nodes)[analysis.position[start] + 1 :]:
        if node in owner:
            _pass_exit(stage, node, owner[node])
        elif any(
            source in stage.layouts or source in stage.steps for source in node.all_input_nodes
        ):
            _carry(stage, node)
    return stage


def _pass_exit(stage: Stage, node: fx.Node, region: Region) -> None:
    """A region's result is in window order if the residual that it is added to is."""
    residual = stage.layout(region.residual(node))
    if residual is not None:
        stage.layouts[node] = residual


def _carry(stage: Stage, node: fx.Node) -> None:
    """Let a node run in window order if its rule allows; else its readers get natural order."""
    try:
        carried = stage.advance(node).layout
    except CannotRewrite:
        return
    parts = carried if isinstance(carried, tuple) else (carried,)
    lone = carried is None and not is_getitem(node)  # a part of a tuple may be without tokens
    if lone or any(part and (part.pictures > 1 or part.ranks) for part in parts):
        # An order brings back one picture; of two that are joined it would leave one as it is.
        # Tokens of other ranks stand in an order of theirs.
        stage.forget(node)
