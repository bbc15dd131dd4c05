"""The time of a step on average over a schedule."""

from __future__ import annotations

import pytest

from benchmarks.race.pace import (
    CYCLE,
    alternating,
    phase_seconds,
    quartiles,
    scheduled,
    steady,
    step_seconds,
    usual,
)

CYCLES = [5.0, 1, 1, 1, 1, 3, 1, 1, 1, 1] * 2


def test_phases_are_weighted_by_how_often_they_come() -> None:
    phases = scheduled(10, 5)
    assert phase_seconds(CYCLES, phases) == {"select": 5, "reuse": 1, "weigh": 3}
    assert step_seconds(CYCLES, phases) == pytest.approx(sum(CYCLES) / len(CYCLES))


def test_one_disturbed_step_changes_little() -> None:
    disturbed = CYCLES.copy()
    disturbed[3] = 100.0
    assert step_seconds(disturbed, scheduled(10, 5)) == step_seconds(CYCLES, scheduled(10, 5))


def test_every_phase_comes_in_a_cycle_and_schedules_come_out_even() -> None:
    for phases in (steady, alternating, scheduled(10, 5), scheduled(3, 3), scheduled(1, 1)):
        numbers = {phase: float(place) for place, phase in enumerate(map(phases, range(CYCLE)))}
        seconds = [numbers[phases(step)] for step in range(120)]
        assert {phases(step) for step in range(120)} == numbers.keys()
        assert step_seconds(seconds[:CYCLE], phases) == pytest.approx(sum(seconds) / 120)


def test_spread_is_of_the_usual_step() -> None:
    found = usual(CYCLES, scheduled(10, 5))
    assert found == [1.0] * 16
    assert quartiles(found) == (1, 1)
    assert quartiles([1, 2, 3, 4, 5]) == (2, 4)
    assert quartiles([7]) == (7, 7)
