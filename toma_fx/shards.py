"""Which tokens of a picture are a rank's own, where a model's tokens are sharded over several."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, distributed, nn


@dataclass(frozen=True)
class Shard:
    """One of `count` runs of tokens of one length, in the order of ranks."""

    rank: int = 0
    count: int = 1

    def own(self, rows: Tensor) -> Tensor:
        """`[N, …]`, a row for each token of the whole picture, to `[N / count, …]`."""
        return rows.chunk(self.count)[self.rank]


WHOLE = Shard()
"""All tokens, as nobody shares them."""


def shard_of(model: nn.Module) -> Shard:
    """What `enable_parallelism` of diffusers leaves a rank; all tokens where nobody called it."""
    parallel = getattr(model, "_parallel_config", None)
    context = getattr(parallel, "context_parallel_config", None)
    mesh = getattr(context, "_flattened_mesh", None)
    if mesh is None:
        return WHOLE
    return Shard(distributed.get_rank(mesh.get_group()), mesh.size())
