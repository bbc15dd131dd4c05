"""The methods of token merging, by the names of `TomaConfig.method`.

Why: how tokens are chosen, merged and put back is independent of where that is legal. Each method
is one file, a `Method` that says to the stages which readers it merges, in which windows, at what
cost, and a `Plan` that writes its nodes.

Before: regions and their group. After: nodes in the graph that is being built, by `graph.emit`.
Called by `find` (readers), `plan/` (windows, costs) and `rewrite/` (nodes).
"""

from toma_fx.passes.methods import downsampled, matched, refresh, toma
from toma_fx.passes.methods.base import Method, Plan

METHODS: dict[str, Method] = {
    "toma": toma.METHOD,
    "tomesd": matched.TOMESD,
    "tofu": matched.TOFU,
    "todo": downsampled.METHOD,
    "refresh": refresh.METHOD,
}

__all__ = ["METHODS", "Method", "Plan"]
