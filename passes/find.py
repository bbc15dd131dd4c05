"""Pass 2: find the regions that can run on merged tokens. Read-only.

Why: a merge is legal where every operation downstream treats tokens alike, up to the point where
the result returns to the full-length residual stream. That is a property of the graph, so it is
proven on the graph: layouts flow forward from each candidate entry, one rule per operation.

Before: a normalised graph. After: one `Region` per attention or MLP, with its kind and either the
steps of a complete proof or the reason why there is none.

Precondition: `normalize` has run.
"""

from __future__ import annotations

import math

import torch
from torch import fx

from toma_fx.errors import CannotRewrite
from toma_fx.passes.anchors import Entry, find_entries
from toma_fx.passes.graphs import ATTENTIONS, common_module, is_tensor, op_name, shape
from toma_fx.passes.inputs import Inputs
from toma_fx.passes.layout import AtDestinations, Segment, TokenLayout, tables
from toma_fx.passes.region import Positions, Region
from toma_fx.passes.rules import find_rule
from toma_fx.passes.streams import Stream, Streams

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def find(gm: fx.GraphModule, grid: tuple[int, ...] | str | None = None) -> list[Region]:
    """All attention and MLP regions of a normalised graph, in graph order.

    Args:
        gm: from `normalize`; not modified.
        grid: `TomaConfig.grid`; where several streams reach the output (a block compiled on its
            own), the one of this size is the picture.
    """
    inputs = Inputs(gm.graph)
    streams = Streams(gm.graph, inputs)
    position = {node: index for index, node in enumerate(gm.graph.nodes)}
    entries = find_entries(gm.graph, inputs)
    pictures = _Pictures([streams.of(entry.node, 1) for entry in entries], streams, grid)
    regions = []
    for entry in entries:
        region = Region(entry.kind, entry.node, entry.seeds, entry.anchors, entry.module_path)
        regions.append(region)
        try:
            pictures.locate(region, streams.of(entry.node, 1))
            if region.layout is not None:
                _Propagation(region, inputs, streams, position).run()
        except CannotRewrite as refusal:
            region.drop("refused", str(refusal))
    regions += _unreached(gm.graph, regions)
    return sorted(_without_text_twins(regions), key=lambda region: position[region.entry])


class _Pictures:
    """Tells the picture's tokens, which are merged, from text.

    A picture is a stream that folds two or three sides, else the one whose token axis reaches
    the output. Where several do, `grid` names it by its size.
    """

    def __init__(
        self, candidates: list[Stream], streams: Streams, grid: tuple[int, ...] | str | None
    ) -> None:
        origins = {origin.key: origin for stream in candidates for origin in stream}
        folded = {key for key, origin in origins.items() if origin.grid is not None}
        reaching = {key: origins[key] for key in origins if key in streams.reaching}
        self._keys = folded or set(reaching)
        self._rivals: list[int] = []
        if not folded and len(reaching) > 1:
            if isinstance(grid, tuple):
                size = math.prod(grid)
                self._keys = {key for key, origin in reaching.items() if origin.length == size}
            if not isinstance(grid, tuple) or len(self._keys) > 1:
                self._rivals = sorted(origin.length for origin in reaching.values())

    def locate(self, region: Region, stream: Stream) -> None:
        """Set the region's layout and origin, or say why none of its tokens is merged."""
        value = region.entry.meta["val"]
        if value.dtype not in FLOATS:
            raise CannotRewrite(f"activations are {value.dtype}, not floating point", region.entry)
        latent = [origin for origin in stream if origin.key in self._keys]
        if not latent:
            region.drop("skipped", "text stream: its tokens are never merged")
            return
        region.origin = max(latent, key=lambda origin: origin.length)
        if self._rivals:
            sizes = " and ".join(map(str, self._rivals))
            raise CannotRewrite(
                f"streams of {sizes} tokens reach the output: "
                "name the picture with TomaConfig(grid=(height, width))"
            )
        segments = tuple(Segment(origin.length, origin is region.origin) for origin in stream)
        region.layout = TokenLayout(1, 0, segments)


class _Propagation:
    """Layouts flowing forward from one entry; the `Flow` that rules ask."""

    def __init__(
        self, region: Region, inputs: Inputs, streams: Streams, position: dict[fx.Node, int]
    ) -> None:
        self._region = region
        self._inputs = inputs
        self._streams = streams
        self._position = position

    def run(self) -> None:
        """Fill `region.steps`.

        Raises:
            CannotRewrite: a reader of merged tokens has no rule, or its rule refuses.
        """
        region = self._region
        waiting = set(region.seeds)
        exits = []
        while waiting:
            node = min(waiting, key=self._position.__getitem__)
            waiting.remove(node)
            step = find_rule(node)(node, self)
            region.steps[node] = step
            if step.exit is not None:
                exits.append(node)
            elif step.layout is not None:
                waiting.update(node.users)
        if not exits:
            raise CannotRewrite("the result never returns to the residual stream", region.entry)
        region.block_path, region.block_class = common_module(exits)
        region.positions = self._positions()
        self._one_device()

    def layout(self, node: object) -> TokenLayout | None:
        if node is self._region.entry:
            return self._region.layout
        step = self._region.steps.get(node)  # type: ignore[call-overload]
        layout = step.layout if step is not None else None
        return layout if isinstance(layout, TokenLayout) else None

    def results(self, node: fx.Node) -> tuple[TokenLayout | None, ...]:
        step = self._region.steps.get(node)
        if step is None or not isinstance(step.layout, tuple):
            raise CannotRewrite(f"{op_name(node)} has no results with tokens", node)
        return step.layout

    def is_table(self, node: fx.Node, *, constant: bool) -> bool:
        return self._inputs.constant(node) if constant else self._inputs.is_table(node)

    def is_residual(self, node: fx.Node, axis: int) -> bool:
        """The stream as it was at the entry, or as an earlier exit of this region left it."""
        region = self._region
        earlier = self._position[node] <= self._position[region.entry]
        step = region.steps.get(node)
        if not earlier and not (step is not None and step.exit is not None):
            return False
        mine = [origin.key for origin in self._streams.of(region.entry, 1)]
        return [origin.key for origin in self._streams.of(node, axis)] == mine

    def _positions(self) -> Positions | None:
        """The position ids behind a table that the region gathers, `[tokens, 2 … 4]`."""
        for step in self._region.steps.values():
            for table in tables(step):
                rows = table.table
                if isinstance(rows, AtDestinations):
                    continue
                stream = self._streams.of(rows, table.axis - table.leading)
                if len(stream) != len(table.segments):
                    continue
                merged = next(i for i, segment in enumerate(table.segments) if segment.merged)
                origin = stream[merged]
                sizes = shape(origin.node)
                if origin.axis == 0 and len(sizes) == 2 and 2 <= sizes[1] <= 4:
                    return Positions(origin.node, origin.start, origin.length)
        return None

    def _one_device(self) -> None:
        tensors = [arg for node in self._region.steps for arg in node.all_input_nodes if is_tensor(arg)]
        devices = {tensor.meta["val"].device for tensor in tensors if tensor.meta["val"].dim()}
        if len(devices) > 1:
            names = ", ".join(sorted(map(str, devices)))
            raise CannotRewrite(f"the region lies on several devices ({names})", self._region.entry)


def _unreached(graph: fx.Graph, regions: list[Region]) -> list[Region]:
    """Attention whose query comes from no linear: reported, so that nothing is skipped silently."""
    reached = {anchor for region in regions for anchor in region.anchors}
    found = []
    for node in graph.nodes:
        if node.target in ATTENTIONS and node not in reached:
            query: fx.Node = node.args[0]  # type: ignore[assignment]
            region = Region("self_attention", query, (), (node,), common_module([node])[0])
            region.drop("refused", f"no linear projection of hidden states feeds {node.name}")
            found.append(region)
    return found


def _without_text_twins(regions: list[Region]) -> list[Region]:
    """Drop the text side of a joint attention: its picture side reports that attention."""
    reported = {
        anchor
        for region in regions
        for anchor in region.anchors
        if region.origin is not None and anchor.target in ATTENTIONS
    }
    return [
        region
        for region in regions
        if region.origin is not None or not reported.intersection(region.anchors)
    ]
