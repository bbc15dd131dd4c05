"""The graph passes. Their order, once:

    normalize   any traced module → pre-dispatch ATen with static sizes
    find        regions that provably may run on merged tokens   (read-only)
    plan        which of them do, in which windows, sharing what (read-only)
    scope       whole blocks that merge once, where asked for    (read-only, within plan)
    hoist       where the residual stream stays in window order  (read-only)
    rewrite     merge → region → unmerge, on a copy              (the only editor)
    verify      same inputs, same outputs, well-formed

`runner.run_passes` runs them; everything that a pass will not do is a `CannotRewrite` with its
reason, caught there or, for a single region, in `find`.
"""

from toma_fx.passes.runner import RewriteResult, run_passes

__all__ = ["RewriteResult", "run_passes"]
