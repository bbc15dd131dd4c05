"""Which hidden states feed an attention or an MLP: the candidates for merging.

An entry feeds one or more linears. Walking forward from them, an attention's query makes it an
attention entry, a second linear a feed-forward entry, both a parallel block. The walk stops at
norms over channels and where another full-length activation is added: there begins another
region.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import torch
from torch import fx

from toma_fx.passes.graph.attentions import is_attention, token_axis
from toma_fx.passes.graph.exchanges import is_exchange
from toma_fx.passes.graph.inputs import Inputs
from toma_fx.passes.graph.nodes import LINEARS, aten, common_module, shape

# The last is what a norm is written with where it is written by hand.
_NORMS = (
    aten.layer_norm.default,
    aten.rms_norm.default,
    aten.group_norm.default,
    aten.rsqrt.default,
)
_CASTS = (aten.to.dtype, aten._to_copy.default, aten.contiguous.default, aten.clone.default)


@dataclass(frozen=True)
class Entry:
    """Hidden states that feed an attention or an MLP."""

    node: fx.Node
    kind: str
    seeds: tuple[fx.Node, ...]
    anchors: tuple[fx.Node, ...]
    module_path: str


def find_entries(graph: fx.Graph, inputs: Inputs) -> list[Entry]:
    """All entries of a normalised graph, in graph order."""
    linears: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.target in LINEARS and len(shape(node.args[0])) == 3:
            source = _before_casts(node.args[0])
            if not inputs.constant(source):
                linears.setdefault(source, []).append(node)
    position = {node: index for index, node in enumerate(graph.nodes)}
    found = (
        _entry(node, readers, _Walk(readers, inputs, position)) for node, readers in linears.items()
    )
    return [entry for entry in found if entry is not None]


def _before_casts(node: fx.Node) -> fx.Node:
    while node.target in _CASTS:
        node = node.args[0]
    return node


def _entry(node: fx.Node, linears: list[fx.Node], walk: _Walk) -> Entry | None:
    queries = [attention for attention in walk.attentions if attention.args[0] in walk.reached]
    outer = [linear for linear in walk.outer if not queries or not walk.leads_to_attention(linear)]
    if queries:
        kind = "parallel" if outer else _attention_kind(queries[0], walk, shape(node)[1])
    elif outer:
        kind = "feed_forward"
    else:
        return None
    seeds = tuple(user for user in node.users if user in linears or _casts_for(user, linears))
    anchors = tuple(dict.fromkeys([*linears, *queries, *outer]))
    return Entry(node, kind, seeds, anchors, common_module(anchors)[0])


def _casts_for(node: fx.Node, linears: list[fx.Node]) -> bool:
    return node.target in _CASTS and any(
        user in linears or _casts_for(user, linears) for user in node.users
    )


def _attention_kind(attention: fx.Node, walk: _Walk, tokens: int) -> str:
    key: fx.Node = attention.args[1]
    if key not in walk.reached:
        return "cross_attention"
    # Behind an exchange the keys are those of all ranks.
    ranks = max((len(node.args[2]) for node in walk.reached if is_exchange(node)), default=1)
    own = shape(key)[token_axis(attention)] == tokens * ranks
    return "self_attention" if own else "joint_attention"


class _Walk:
    """What linears reach without passing an attention, or a linear outside of an adapter.

    Attributes:
        reached: the nodes on the way.
        attentions: the attentions at its end.
        outer: the second linears. Those of an adapter (LoRA) lead on to the attention.
    """

    def __init__(self, starts: list[fx.Node], inputs: Inputs, position: dict[fx.Node, int]) -> None:
        self._inputs = inputs
        self._position = position
        self.reached: set[fx.Node] = set()
        self.attentions: list[fx.Node] = []
        self.outer: list[fx.Node] = []
        self._normed: set[fx.Node] = set()
        self._advance(starts)
        self._advance(list(self.outer))  # an adapter's second linear rejoins its base here

    def leads_to_attention(self, linear: fx.Node) -> bool:
        stack, seen = [linear], set()
        while stack:
            node = stack.pop()
            if node in self.attentions:
                return True
            if node not in seen and (node in self.reached or node is linear):
                seen.add(node)
                stack += node.users
        return False

    def _advance(self, starts: list[fx.Node]) -> None:
        self.reached.update(starts)
        heap = [(self._position[user], user) for start in starts for user in start.users]
        heap += [(self._position[u], u) for node in self.reached for u in node.users]
        heapq.heapify(heap)
        while heap:
            node = heapq.heappop(heap)[1]
            if node in self.reached or node.op == "output":
                continue
            if is_attention(node):
                self.attentions += [node] * (node not in self.attentions)
            elif node.target in LINEARS:
                fresh = node not in self.outer and node.args[0] not in self._normed
                self.outer += [node] * fresh
            elif not self._joins_another_stream(node):
                self._pass(node)
                for user in node.users:
                    heapq.heappush(heap, (self._position[user], user))

    def _pass(self, node: fx.Node) -> None:
        """Past a norm over channels a linear begins another region; an attention may follow."""
        self.reached.add(node)
        norm = node.target in _NORMS and len(shape(node)) == 3
        if norm or any(source in self._normed for source in node.all_input_nodes):
            self._normed.add(node)

    def _joins_another_stream(self, node: fx.Node) -> bool:
        if torch.Tag.pointwise not in getattr(node.target, "tags", ()):
            return False
        return any(
            source not in self.reached
            and shape(source) == shape(node)
            and not self._inputs.is_table(source)
            for source in node.all_input_nodes
        )
