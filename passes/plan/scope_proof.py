"""The proof that whole blocks may run on merged tokens: that of `find`, begun at the stream.

Read-only. `scope` asks for it, and goes on with smaller scopes where there is none.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from toma_fx.errors import CannotRewrite
from toma_fx.passes.find.region import Region
from toma_fx.passes.graph.nodes import common_module, facts, op_name
from toma_fx.passes.layouts.analysis import Analysis
from toma_fx.passes.layouts.layout import TokenLayout
from toma_fx.passes.layouts.propagate import Propagation


def prove(kind: str, parts: list[Region], analysis: Analysis, regions: list[Region]) -> Region:
    """The scope that holds some regions.

    Raises:
        CannotRewrite: it needs the full-length stream, or holds another region.
    """
    exits = sorted((n for part in parts for n in part.exits), key=analysis.position.__getitem__)
    start, layout = _begin(parts, exits[0])
    end = exits[-1]
    if facts(start) != facts(end):
        raise CannotRewrite(f"the stream changes from {facts(start)} to {facts(end)}", end)
    _no_writes(start, end, analysis)
    readers = tuple(reader for reader in start.users if reader in _leading_to(end, start, analysis))
    keys = tuple(node for part in parts for node in part.keys)
    flow = Propagation(analysis, start, layout, readers, lambda *_: False, end, keys)
    flow.run()
    _same_regions(flow, parts, regions)
    result = flow.layout(end)
    if result is None or (result.axis, result.segments) != (layout.axis, layout.segments):
        raise CannotRewrite("the result carries its tokens differently", end)
    anchors = tuple(anchor for part in parts for anchor in part.anchors)
    path, cls = common_module([n for part in parts for n in part.exits])
    return Region(
        kind,
        start,
        readers,
        anchors,
        common_module(anchors)[0],
        origin=parts[0].origin,
        layout=layout,
        steps=flow.steps,
        block_path=path,
        block_class=cls,
        keys=keys,
        parts=tuple(parts),
        end=end,
        twice=_needed_whole(keys, flow, parts),
    )


def _needed_whole(
    keys: Iterable[fx.Node], flow: Propagation, parts: list[Region]
) -> frozenset[fx.Node]:
    """What keys of all tokens are made of: merged for others, and at full length for them.

    Raises:
        CannotRewrite: a region of the scope is among it, so that nothing would be saved.
    """
    anchors = {anchor for part in parts for anchor in part.anchors} - set(keys)
    waiting = [source for node in keys for source in node.all_input_nodes]
    found: set[fx.Node] = set()
    while waiting:
        node = waiting.pop()
        if node in found or node not in flow.steps or flow.steps[node].layout is None:
            continue
        if node in anchors:
            raise CannotRewrite("keys of all tokens need the stream at full length", node)
        found.add(node)
        waiting += node.all_input_nodes
    return frozenset(found)


def _begin(parts: list[Region], leave: fx.Node) -> tuple[fx.Node, TokenLayout]:
    """The stream that the first addition returns to, laid out as what is added to it."""
    first = next(part for part in parts if leave in part.steps)
    index = first.steps[leave].exit
    assert index is not None
    change, start = leave.args[index], first.residual(leave)
    layout = first.steps[change].layout
    assert isinstance(layout, TokenLayout)
    assert start is not None
    return start, TokenLayout(1, 0, layout.segments)


def _leading_to(end: fx.Node, start: fx.Node, analysis: Analysis) -> set[fx.Node]:
    """The nodes after `start` that `end` depends on, itself among them."""
    found: set[fx.Node] = set()
    stack = [end]
    while stack:
        node = stack.pop()
        if node not in found and analysis.position[node] > analysis.position[start]:
            found.add(node)
            stack += node.all_input_nodes
    return found


def _no_writes(start: fx.Node, end: fx.Node, analysis: Analysis) -> None:
    """A write may go through a view of what was merged."""
    position = analysis.position
    for node in analysis.writes:
        if position[start] < position[node] <= position[end]:
            raise CannotRewrite(f"{op_name(node)} writes in place inside the scope", node)


def _same_regions(flow: Propagation, parts: list[Region], regions: list[Region]) -> None:
    """Merged tokens must reach all of the scope's regions, and none beside them."""
    for part in parts:
        if any(node not in flow.steps for node in part.steps):
            raise CannotRewrite(f"the {part.kind} reads another stream", part.entry)
    inside = {id(part) for part in parts}
    for region in regions:
        if id(region) in inside:
            continue
        if any(node in flow.steps for node in (*region.anchors, *region.steps)):
            raise CannotRewrite(f"the {region.kind} in it stays at full length", region.entry)
