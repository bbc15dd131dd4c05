"""Steps of a schedule differ. The time of a step is the mean over the schedule.

Each step belongs to a phase: it selects destinations, weighs them, or reuses both. The median of
each phase, weighted by how often it comes, is not thrown off by one disturbed step, which a mean
over ten would be.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

CYCLE = 10
"""Steps that are run in one go: every phase comes in it."""
_EVEN = 60  # steps over which every schedule comes out even

Phases = Callable[[int], str]


def steady(step: int) -> str:
    """All steps are alike."""
    return "step"


def scheduled(select_every: int, weigh_every: int) -> Phases:
    """Phases of merging with plans that are reused."""

    def phase(step: int) -> str:
        if step % select_every == 0:
            return "select"
        return "weigh" if step % weigh_every == 0 else "reuse"

    return phase


def alternating(step: int) -> str:
    """A cache that serves every other step."""
    return "reuse" if step % 2 else "compute"


def by_phase(seconds: Sequence[float], phases: Phases) -> dict[str, list[float]]:
    """Seconds of steps 0, 1, 2, … by their phase."""
    found: dict[str, list[float]] = {}
    for step, value in enumerate(seconds):
        found.setdefault(phases(step), []).append(value)
    return found


def step_seconds(seconds: Sequence[float], phases: Phases) -> float:
    """Of a step on average over the schedule: medians of phases, as often as each comes."""
    medians = phase_seconds(seconds, phases)
    due = [phases(step) for step in range(_EVEN)]
    return statistics.fmean(medians[phase] for phase in due if phase in medians)


def phase_seconds(seconds: Sequence[float], phases: Phases) -> dict[str, float]:
    """Median of each phase."""
    return {name: statistics.median(part) for name, part in by_phase(seconds, phases).items()}


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The spread; of a single value, that value."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def usual(seconds: Sequence[float], phases: Phases) -> list[float]:
    """Steps of the most frequent phase, whose spread is noise and not schedule."""
    return max(by_phase(seconds, phases).values(), key=len)
