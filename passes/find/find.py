"""Pass 2: find the regions that can run on merged tokens. Read-only.

Why: a merge is legal where every operation downstream treats tokens alike, up to the point where
the result returns to the full-length residual stream. That is a property of the graph, so it is
proven on the graph: layouts flow forward from each candidate entry, one rule per operation.

Before: a normalised graph. After: one `Region` per attention or MLP, with its kind and either the
steps of a complete proof or the reason why there is none.

Precondition: `normalize` has run.
"""

from __future__ import annotations

from torch import fx

from toma_fx.errors import CannotRewrite
from toma_fx.passes.find.anchors import Entry, find_entries
from toma_fx.passes.find.gates import read_gates
from toma_fx.passes.find.geometry import read_geometry
from toma_fx.passes.find.keys import key_and_value_nodes, key_and_value_readers
from toma_fx.passes.find.method import WHOLE, Method
from toma_fx.passes.find.pictures import Grid, Pictures
from toma_fx.passes.find.region import Region
from toma_fx.passes.graph.attentions import is_attention
from toma_fx.passes.graph.nodes import LINEARS, common_module, is_tensor, op_name, shape
from toma_fx.passes.graph.outside import Outside
from toma_fx.passes.layouts.analysis import Analysis
from toma_fx.passes.layouts.layout import Segment
from toma_fx.passes.layouts.origins import Stream
from toma_fx.passes.layouts.propagate import Propagation


def find(
    analysis: Analysis,
    grid: Grid = None,
    method: Method = WHOLE,
    keys: str = "auto",
    *,
    grid_start: int = 0,
    references: str = "keep",
    outside: Outside = Outside(),  # noqa: B008 - frozen
) -> list[Region]:
    """All attention and MLP regions of a normalised graph, in graph order.

    Args:
        analysis: of the graph from `normalize`.
        grid: `TomaConfig.grid`; where several streams reach the output (a block compiled on its
            own), the one of this size is the picture.
        method: which readers of an entry see merged tokens.
        keys: `TomaConfig.keys`: whose keys and values attention sees.
        grid_start: `TomaConfig.grid_start`.
        references: `TomaConfig.references`.
        outside: what is known of the picture beside that.
    """
    streams, position = analysis.streams, analysis.position
    entries = find_entries(analysis.graph, analysis.inputs)
    candidates = [streams.of(entry.node, 1) for entry in entries]
    pictures = Pictures(candidates, streams, grid, grid_start, references == "keep", outside)
    regions = _located(entries, pictures, analysis, method, keys)
    cuts = pictures.learn(regions)
    if cuts is not None:
        analysis.cut(cuts)
        regions = _located(entries, pictures, analysis, method, keys)
    regions += _unreached(analysis.graph, regions)
    regions = sorted(_without_text_twins(regions), key=lambda region: position[region.entry])
    _refuse_overlaps(regions)
    return _without_inner(regions)


def _located(
    entries: list[Entry], pictures: Pictures, analysis: Analysis, method: Method, keys: str
) -> list[Region]:
    """A region for each entry, proven where it holds tokens of the picture."""
    regions = []
    for entry in entries:
        region = Region(entry.kind, entry.node, entry.seeds, entry.anchors, entry.module_path)
        regions.append(region)
        try:
            pictures.locate(region, analysis.streams.of(entry.node, 1))
            if region.layout is not None:
                _prove(region, analysis, method)
                if region.steps and _sees_all(region, method, keys):
                    _keep_keys(region, analysis, method)
        except CannotRewrite as refusal:
            region.drop("refused", str(refusal))
    return regions


def _prove(region: Region, analysis: Analysis, method: Method) -> None:
    """Fill the region's steps: what becomes of every node that merged tokens reach.

    Raises:
        CannotRewrite: a reader of merged tokens has no rule, or its rule refuses.
    """
    readers = method.readers(region)
    if not readers:
        region.drop("skipped", "no keys and values of its own to sample")
        return
    _follow(region, readers, analysis, method)


def _sees_all(region: Region, method: Method, keys: str) -> bool:
    """Whether keys and values are to be those of all tokens."""
    return method.sees_all(region) if keys == "auto" else keys == "all"


def _keep_keys(region: Region, analysis: Analysis, method: Method) -> None:
    """Leave keys and values at full length, and follow the other readers alone, where it can be."""
    whole = key_and_value_readers(region)
    rest = tuple(seed for seed in region.seeds if seed not in whole)
    if whole and rest:
        before = dict(vars(region))
        try:
            region.keys = key_and_value_nodes(region)
            _follow(region, rest, analysis, method)
        except CannotRewrite as refusal:
            vars(region).update(before)
            region.note = f"keys of merged tokens alone: {refusal}"
    elif region.kind not in ("cross_attention", "feed_forward"):
        region.note = "keys of merged tokens alone: one linear gives queries, keys and values"


def _follow(
    region: Region, readers: tuple[fx.Node, ...], analysis: Analysis, method: Method
) -> None:
    """Prove a region of whose entry these readers see merged tokens, and the others all.

    Raises:
        CannotRewrite: one of them has no rule, or its rule refuses.
    """
    assert region.layout is not None
    region.seeds = readers

    def residual(node: fx.Node, axis: int, segments: tuple[Segment, ...]) -> bool:
        """The region's stream, whatever else has been added to it by now."""
        return _same_stream(region, segments, analysis.streams.of(node, axis))

    flow = Propagation(analysis, region.entry, region.layout, region.seeds, residual)
    exits = _Exits(flow)
    flow.run()
    region.steps = flow.steps
    _no_writes_between(region, analysis)
    if method.returns and not exits.nodes():
        raise CannotRewrite("the result never returns to the residual stream", region.entry)
    region.block_path, region.block_class = common_module(exits.nodes() or list(region.anchors))
    read_gates(region, analysis)
    read_geometry(region, analysis.streams)
    _one_device(region)


def _same_stream(region: Region, segments: tuple[Segment, ...], stream: Stream) -> bool:
    """Whether a stream's tokens are those of `segments`, the picture's above all."""
    assert region.origin is not None
    return len(segments) == len(stream) and all(
        segment.length == origin.length and (not segment.merged or origin.key == region.origin.key)
        for segment, origin in zip(segments, stream, strict=True)
    )


def _no_writes_between(region: Region, analysis: Analysis) -> None:
    """A write between the entry and the region's end may go through a view of what was merged."""
    position = analysis.position
    last = max((position[node] for node in region.steps), default=0)
    for node in analysis.writes:
        if position[region.entry] < position[node] < last:
            raise CannotRewrite(f"{op_name(node)} writes in place inside the region", node)


class _Exits:
    """The additions where a flow has left its region so far."""

    def __init__(self, flow: Propagation) -> None:
        self._flow = flow

    def __contains__(self, node: fx.Node) -> bool:
        step = self._flow.steps.get(node)
        return step is not None and step.exit is not None

    def nodes(self) -> list[fx.Node]:
        return [node for node in self._flow.steps if node in self]


def _one_device(region: Region) -> None:
    tensors = [arg for node in region.steps for arg in node.all_input_nodes if is_tensor(arg)]
    devices = {tensor.meta["val"].device for tensor in tensors if tensor.meta["val"].dim()}
    if len(devices) > 1:
        names = ", ".join(sorted(map(str, devices)))
        raise CannotRewrite(f"the region lies on several devices ({names})", region.entry)


def _refuse_overlaps(regions: list[Region]) -> None:
    """A node can be rewritten once: of two regions that reach it, the first in the graph does."""
    owner: dict[fx.Node, Region] = {}
    for region in regions:
        if region.status != "merged":
            continue
        other = next((owner[node] for node in region.steps if node in owner), None)
        if other is None:
            owner.update(dict.fromkeys(region.steps, region))
        else:
            path = other.module_path or other.entry.name
            region.drop("refused", f"shares operations with the {other.kind} of {path}")


def _unreached(graph: fx.Graph, regions: list[Region]) -> list[Region]:
    """Attention that no entry reaches: reported, so that nothing is skipped silently."""
    reached = {anchor for region in regions for anchor in region.anchors}
    found = []
    for node in graph.nodes:
        if is_attention(node) and node not in reached:
            query: fx.Node = node.args[0]
            region = Region("self_attention", query, (), (node,), common_module([node])[0])
            region.drop("refused", _why_unreached(node))
            found.append(region)
    return found


def _why_unreached(attention: fx.Node) -> str:
    """What stands between hidden states `[B, N, C]` and the query."""
    waiting, seen = [attention.args[0]], set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.target in LINEARS:
            rank = len(shape(node.args[0]))
            if rank != 3:
                return f"its hidden states have {rank} axes, not items, tokens and channels"
            return "no linear projection of normed hidden states feeds it"
        waiting += node.all_input_nodes
    return (
        "no linear projection of hidden states feeds it in this graph: where the model breaks its "
        'graph before this attention, TORCH_LOGS="graph_breaks" says why'
    )


def _without_inner(regions: list[Region]) -> list[Region]:
    """Drop what was tried from inside of a merged region: its linears run on merged tokens."""
    proven = [region for region in regions if region.status == "merged"]
    inside = {n for region in proven for n, step in region.steps.items() if step.layout is not None}
    return [r for r in regions if r.status == "merged" or r.entry not in inside]


def _without_text_twins(regions: list[Region]) -> list[Region]:
    """Drop the text side of a joint attention: its picture side reports that attention."""
    reported = {
        anchor
        for region in regions
        for anchor in region.anchors
        if region.origin is not None and is_attention(anchor)
    }
    return [
        region
        for region in regions
        if region.origin is not None or not reported.intersection(region.anchors)
    ]
