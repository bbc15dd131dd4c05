"""A small pipeline on every rank: its denoiser sharded first, then merged through the door."""

from __future__ import annotations

from typing import Any

from diffusers import ContextParallelConfig
from torch import Tensor

from tests.parallel.ranks import Results
from tests.pipelines import Pipe, flux_pipe
from toma_fx.diffusers import TokenMergingConfig, apply, remove, status

MERGED: dict[str, Any] = {"regions": "all", "window": 4, "min_tokens": 64, "order": "stripe"}
"""Tokens of a stripe stand in one order, whether its rank's rows are all or not."""
EAGER: dict[str, Any] = {"options": {"inner_backend": "eager"}}
STEPS = 2


def pictures(rank: int, ranks: int) -> Results:
    """Two pictures in a row, of another prompt and seed each: plain, at ratio zero and merged."""
    found: Results = {}
    if rank == 0:  # the others wait
        found["alone"] = _merged(flux_pipe(), 0.5)
        found["plain"] = _drawn(flux_pipe())
    pipe = flux_pipe()
    config = ContextParallelConfig(ulysses_degree=ranks)
    pipe.pipeline.transformer.enable_parallelism(config=config)
    found["sharded"] = _drawn(pipe)
    for ratio in (0.0, 0.5):
        found["merged", ratio] = _merged(pipe, ratio)
    return found


def _merged(pipe: Pipe, ratio: float) -> list[Tensor]:
    apply(pipe.pipeline, TokenMergingConfig(**MERGED, ratio=ratio), **EAGER)
    found = _drawn(pipe)
    steps = {row.graph: row.steps for row in status(pipe.pipeline).graphs if row.steps}
    assert sum(steps.values()) == STEPS, steps
    remove(pipe.pipeline)
    return found


def _drawn(pipe: Pipe) -> list[Tensor]:
    return [pipe.run(prompt=number, seed=number, steps=STEPS) for number in range(2)]
