"""One contestant's results, and curves of cost and distance through them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.quality.measures import Estimate

Curve = list[tuple[float, float]]
"""Costs, as shares of the plain model's, and distances to its pictures; sorted."""


@dataclass
class Row:
    """One contestant.

    Attributes:
        name: of the contestant.
        group: rows that are read together.
        pairs: pictures compared.
        steps: denoising steps.
        merges: False for anchors and fewer steps.
        speedup: over the plain model at full steps; by their number for fewer steps.
        flops: share of the model's FLOPs left, or None where unknown.
        found: measures by name.
        each: the first feature distance, pair by pair; rows of the same seeds and captions.
        blocks: share of the transformer blocks' FLOPs left, or None where unknown.
    """

    name: str
    group: str
    pairs: int
    steps: int
    merges: bool
    speedup: float | None
    flops: float | None
    found: dict[str, Estimate]
    each: list[float] = field(default_factory=list)
    blocks: float | None = None

    @property
    def time(self) -> float | None:
        """Share of the plain model's time."""
        return 1 / self.speedup if self.speedup else None


COSTS: dict[str, Callable[[Row], float | None]] = {
    "time": lambda row: row.time,
    "FLOPs": lambda row: row.flops,
    "blocks' FLOPs": lambda row: row.blocks,
}
"""What a row costs, by what it is called in tables."""


def curve(rows: Iterable[Row], cost: str, measure: str) -> Curve:
    """Of rows whose cost and distance are both known."""
    costs = ((COSTS[cost](row), row) for row in rows if measure in row.found)
    return sorted((at, row.found[measure].mean) for at, row in costs if at)


def fewer_steps(rows: Sequence[Row], cost: str, measure: str) -> Curve:
    """Of fewer steps, to all of them."""
    return curve((row for row in rows if is_steps(row)), cost, measure)


def is_steps(row: Row) -> bool:
    """Whether a row is the plain model in some number of steps."""
    return row.group == "fewer steps" or row.name in ("plain", "one step fewer")


def between(points: Curve, cost: float) -> float | None:
    """A distance on a curve; None for less than its smallest cost."""
    if not points or cost < points[0][0]:
        return None
    return float(np.interp(cost, *zip(*points, strict=True)))


def front(rows: Sequence[Row], cost: str, measure: str) -> list[Row]:
    """Rows that nothing as cheap is nearer than; cheapest first."""
    known = [row for row in rows if COSTS[cost](row) and measure in row.found]
    found: list[Row] = []
    for row in sorted(known, key=lambda row: (COSTS[cost](row), row.found[measure].mean)):
        if not found or row.found[measure].mean < found[-1].found[measure].mean:
            found.append(row)
    return found
