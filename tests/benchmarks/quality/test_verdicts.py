"""Rows are held against the default, against toma, and against fewer steps, at equal cost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.quality import verdicts
from benchmarks.quality.measures import Estimate
from benchmarks.quality.rows import Row, front


def row(name: str, group: str, speed: float | None, distance: float, merges: bool = False) -> Row:
    found = {"far": Estimate(distance, distance - 0.01, distance + 0.01)}
    each = [distance - 0.01, distance + 0.01]
    return Row(name, group, 4, 10, merges, speed, None, found, each)


ROWS = [
    row("plain", "anchor", 1.0, 0.0),
    row("80% of the steps", "fewer steps", 1.25, 0.2),
    row("50% of the steps", "fewer steps", 2.0, 0.5),
    row("toma 0.5", "method", 1 / 0.65, 0.1, merges=True),
    row("slow", "method", 0.9, 0.1, merges=True),
    row("untimed", "method", None, 0.1, merges=True),
]


def test_equal_time_lies_between_two_numbers_of_steps() -> None:
    found = [verdicts.at_equal_time(ROWS, one, "far") for one in ROWS[3:]]
    assert found[0] == pytest.approx(0.35)
    assert found[1:] == [None, None]
    faster = row("faster than any", "method", 3.0, 0.1, merges=True)
    assert verdicts.at_equal_time(ROWS, faster, "far") is None


def test_rows_stand_beside_the_default_pair_by_pair() -> None:
    far = row("far", "order", 1.5, 0.4, merges=True)
    found = verdicts.beside_default(ROWS, far)
    assert found == pytest.approx((0.3, 0.3, 0.3))
    assert verdicts.beside_default(ROWS, ROWS[1]) is None  # merges nothing
    assert verdicts.beside_default(ROWS[:2], far) is None  # the default was not run


def test_rows_that_beat_the_default_are_named() -> None:
    def ours(name: str, group: str, speed: float, distance: float) -> Row:
        return row(name, group, speed, distance, merges=True)

    default = ours(verdicts.DEFAULT, "method", 1.5, 0.3)
    others = [ours("near", "order", 1.5, 0.2), ours("slow", "order", 1.2, 0.1)]
    more = [ours("far", "window", 1.6, 0.4), ours("fast", "scope", 1.8, 0.3)]
    more += [replace(ours("unknown", "share", 1.0, 0.2), speedup=None, flops=0.5)]
    lines = verdicts.verdicts([default, *others, *more], "far")
    assert lines == [
        "method, beside toma 0.5: none is better.",
        "order, beside toma 0.5: closer, no slower: near (-0.1, 1.00× its speed).",
        "window, beside toma 0.5: none is better.",
        "scope, beside toma 0.5: faster, no further: fast (+0, 1.20× its speed).",
        "share, beside toma 0.5: closer, untimed: unknown (-0.1, 50% of the FLOPs).",
    ]
    assert verdicts.verdicts(others, "far") == []


def test_equal_flops_lie_between_two_ratios() -> None:
    def method(name: str, flops: float, distance: float) -> Row:
        return replace(row(name, "method", None, distance, merges=True), flops=flops)

    ours = [method("toma 0.5", 0.6, 0.4), method("toma 0.25", 0.8, 0.1)]
    others = [method("x 0.4", 0.7, 0.2), method("x 0.1", 0.9, 0.2), method("x 0.9", 0.5, 0.9)]
    rows = [*ours, *others]
    found = [verdicts.at_equal_flops(rows, one, "far") for one in others]
    assert found == [pytest.approx(0.25), pytest.approx(0.05), None]
    assert verdicts.at_equal_flops(rows, ours[0], "far") is None
    said = "x 0.4 (70%) at 0.2, toma at 0.25; x 0.1 (90%) at 0.2, toma at 0.05"
    assert verdicts.verdicts(rows, "far")[-1] == f"At equal FLOPs, toma between its ratios: {said}."


def costly(name: str, flops: float, distance: float, group: str = "refresh") -> Row:
    merges = group != "fewer steps"
    speed = 1 / (flops + 0.1) if merges else 1 / flops
    made = row(name, group, speed, distance, merges)
    return replace(made, flops=flops, blocks=None if group == "cache" else flops)


COSTLY = [
    replace(row("plain", "anchor", 1.0, 0.0), flops=1.0, blocks=1.0),
    costly("half", 0.5, 0.4, "fewer steps"),
    costly("near", 0.5, 0.1),
    costly("on time", 0.5, 0.35),
    costly("far", 0.75, 0.3),
    costly("cache", 0.6, 0.2, "cache"),
    costly("too cheap", 0.3, 0.6),
    replace(costly("seed", 1.0, 0.9), group="anchor", merges=False),
]


def test_fewer_steps_cost_as_much_in_flops_and_in_time() -> None:
    found = [verdicts.steps_at_equal_flops(COSTLY, one, "far") for one in COSTLY[2:]]
    assert found == [0.4, 0.4, 0.2, pytest.approx(0.32), None, None]
    flops, time = verdicts.against_steps(COSTLY, "far")
    assert flops == (
        "Beside fewer steps at equal FLOPs, nearer: near (0.1, they 0.4), "
        "on time (0.35, they 0.4), cache (0.2, they 0.32); no nearer: far (0.3, they 0.2)."
    )
    assert "nearer: near (0.1, they 0.32), cache (0.2, they 0.24); no nearer: on time" in time
    assert verdicts.against_steps(COSTLY, "other") == []


def test_the_front_is_what_nothing_cheaper_is_nearer_than() -> None:
    assert [one.name for one in front(COSTLY, "FLOPs", "far")] == ["too cheap", "near", "plain"]
    assert front(COSTLY, "FLOPs", "other") == []
    lines = verdicts.fronts(COSTLY, "far")
    assert len(lines) == 3
    assert lines[1].endswith("less FLOPs: too cheap (30%, 0.6), near (50%, 0.1), plain (100%, 0).")
    assert "cache" not in lines[2]


def test_toma_is_held_against_whatever_else_costs_as_much() -> None:
    toma = replace(costly("toma 0.5", 0.6, 0.5), group="method")
    assert verdicts.at_equal_flops([*COSTLY, toma], COSTLY[4], "far") == pytest.approx(0.3125)
    assert verdicts.at_equal_flops([*COSTLY, toma], COSTLY[1], "far") is None
