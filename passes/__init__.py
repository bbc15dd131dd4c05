"""The graph passes. Their order, once:

    normalize/  any traced module → pre-dispatch ATen with static sizes
    find/       regions that provably may run on merged tokens          (read-only)
    plan/       which of them do, in which windows, sharing what        (read-only)
                  scope: whole blocks that merge once, where asked for
                  hoist: where the residual stream stays in window order
    rewrite/    merge → region → unmerge, on a copy                     (the only editor)
    verify      same inputs, same outputs, well-formed
    again       where the batch is a symbol: the same for a second one, and one graph for all

Three folders are no stages, but what stages speak of:

    graph/      nodes: what they are, depend on and cost; how one is made
    layouts/    tokens: where they stand in a tensor, one rule per operation in `rules/`
    methods/    ways of merging: how each plans, merges and unmerges, and what that costs

Imports point one way: graph ← normalize, layouts ← find ← methods ← plan ← rewrite, and on top the
files beside this one, which run them. `runner.run_passes` is where the stages are called, in order;
everything that a pass will not do is a `CannotRewrite` with its reason, caught there or, for a
single region, in `find`.
"""

from toma_fx.passes.runner import RewriteResult, run_passes

__all__ = ["RewriteResult", "run_passes"]
