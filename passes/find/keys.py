"""Whose keys and values an attention sees: of merged tokens, or of all.

A merged query may look at every token: then the projections of keys and values, and what stands
between them and the attention, stay at full length. The graph tells them apart by where they lead.
It also tells where that matters most: rotary tables inside an attention give tokens their places,
so that a query looks for the tokens around it, and half of them would not be there.
"""

from __future__ import annotations

import heapq
import itertools

from torch import fx

from toma_fx.passes.find.region import Region
from toma_fx.passes.graph.attentions import is_attention
from toma_fx.passes.layouts.layout import tables

_FARTHEST = 24  # operations between a projection and its attention: norm, heads, rotary embedding


def key_and_value_readers(region: Region) -> tuple[fx.Node, ...]:
    """The seeds that lead to keys and values of attention, and to no query."""
    if region.kind == "cross_attention":
        return ()
    attentions = _attentions(region)
    return tuple(seed for seed in region.seeds if _only_key_or_value(seed, attentions))


def key_and_value_nodes(region: Region) -> tuple[fx.Node, ...]:
    """What stands between the entry and the keys and values of its attention."""
    return _behind(region, slice(1, 3))


def places_inside(region: Region) -> bool:
    """Whether tables are read at the destinations between a projection and its attention."""
    return any(tables(region.steps[node]) for node in _behind(region, slice(0, 1)))


def _behind(region: Region, operands: slice) -> tuple[fx.Node, ...]:
    """The nodes on merged tokens that lead to some operands of the region's attention."""
    waiting = [arg for node in _attentions(region) for arg in node.args[operands]]
    found: dict[fx.Node, None] = {}
    while waiting:
        node = waiting.pop()
        if node in region.steps and node not in found:
            found[node] = None
            waiting += node.all_input_nodes
    return tuple(found)


def _attentions(region: Region) -> list[fx.Node]:
    return [anchor for anchor in region.anchors if is_attention(anchor)]


def _only_key_or_value(seed: fx.Node, attentions: list[fx.Node]) -> bool:
    reached: set[fx.Node] = set()
    arguments: set[int] = set()
    ticket = itertools.count()
    waiting = [(0, next(ticket), seed)]
    while waiting:
        depth, _, node = heapq.heappop(waiting)
        if node in reached or depth > _FARTHEST:
            continue
        reached.add(node)
        for user in node.users:
            if user in attentions:
                arguments |= {place for place, arg in enumerate(user.args[:3]) if arg is node}
            else:
                heapq.heappush(waiting, (depth + 1, next(ticket), user))
    return bool(arguments) and 0 not in arguments
