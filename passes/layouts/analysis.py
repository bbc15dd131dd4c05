"""What every pass may know of a normalised graph, computed once."""

from __future__ import annotations

from torch import fx

from toma_fx.passes.graph.inputs import Inputs
from toma_fx.passes.graph.nodes import writes
from toma_fx.passes.layouts.origins import Cuts
from toma_fx.passes.layouts.streams import Streams


class Analysis:
    """Facts of one graph.

    Attributes:
        graph: the normalised graph; the facts hold while it is not edited.
        inputs: what each node depends on.
        streams: where token axes begin.
        writes: the nodes that change a tensor in place.
        position: each node's place in the graph.
    """

    def __init__(self, gm: fx.GraphModule) -> None:
        self.graph = gm.graph
        self.inputs = Inputs(gm.graph)
        self.streams = Streams(gm.graph, self.inputs)
        self.writes = [node for node in gm.graph.nodes if writes(node)]
        self.position = {node: index for index, node in enumerate(gm.graph.nodes)}

    def cut(self, cuts: Cuts) -> None:
        """Tell the pictures apart that some origins hold one after the other."""
        self.streams = Streams(self.graph, self.inputs, cuts)
