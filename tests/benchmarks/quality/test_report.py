"""Tables say what was measured, and compare with fewer steps at equal time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.quality import report
from benchmarks.quality.measures import Estimate
from benchmarks.quality.report import Row


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
    found = [report.at_equal_time(ROWS, one, "far") for one in ROWS[3:]]
    assert found[0] == pytest.approx(0.35)
    assert found[1:] == [None, None]
    faster = row("faster than any", "method", 3.0, 0.1, merges=True)
    assert report.at_equal_time(ROWS, faster, "far") is None


def test_rows_stand_beside_the_default_pair_by_pair() -> None:
    far = row("far", "order", 1.5, 0.4, merges=True)
    found = report.beside_default(ROWS, far)
    assert found == pytest.approx((0.3, 0.3, 0.3))
    assert report.beside_default(ROWS, ROWS[1]) is None  # merges nothing
    assert report.beside_default(ROWS[:2], far) is None  # the default was not run


def test_rows_that_beat_the_default_are_named() -> None:
    def ours(name: str, group: str, speed: float, distance: float) -> Row:
        return row(name, group, speed, distance, merges=True)

    default = ours(report.DEFAULT, "method", 1.5, 0.3)
    others = [ours("near", "order", 1.5, 0.2), ours("slow", "order", 1.2, 0.1)]
    more = [ours("far", "window", 1.6, 0.4), ours("fast", "scope", 1.8, 0.3)]
    more += [replace(ours("unknown", "share", 1.0, 0.2), speedup=None, flops=0.5)]
    lines = report.verdicts([default, *others, *more], "far")
    assert lines == [
        "method, beside toma 0.5: none is better.",
        "order, beside toma 0.5: closer, no slower: near (-0.1, 1.00× its speed).",
        "window, beside toma 0.5: none is better.",
        "scope, beside toma 0.5: faster, no further: fast (+0, 1.20× its speed).",
        "share, beside toma 0.5: closer, untimed: unknown (-0.1, 50% of the FLOPs).",
    ]
    assert report.verdicts(others, "far") == []


def test_equal_flops_lie_between_two_ratios() -> None:
    def method(name: str, flops: float, distance: float) -> Row:
        return replace(row(name, "method", None, distance, merges=True), flops=flops)

    ours = [method("toma 0.5", 0.6, 0.4), method("toma 0.25", 0.8, 0.1)]
    others = [method("x 0.4", 0.7, 0.2), method("x 0.1", 0.9, 0.2), method("x 0.9", 0.5, 0.9)]
    rows = [*ours, *others]
    found = [report.at_equal_flops(rows, one, "far") for one in others]
    assert found == [pytest.approx(0.25), pytest.approx(0.05), None]
    assert report.at_equal_flops(rows, ours[0], "far") is None
    said = "x 0.4 (70%) at 0.2, toma at 0.25; x 0.1 (90%) at 0.2, toma at 0.05"
    assert report.verdicts(rows, "far")[-1] == f"At equal FLOPs, toma between its ratios: {said}."


def test_tables_hold_every_row_and_note(tmp_path: Path) -> None:
    report.write(tmp_path / "new", "model", ROWS, {"machine": "here"}, ["Not SDXL."], "far")
    stored = json.loads((tmp_path / "new" / "model.json").read_text())
    assert stored["rows"][1]["found"]["far"] == [0.2, 0.19, pytest.approx(0.21)]
    text = (tmp_path / "new" / "model.md").read_text()
    assert "| toma 0.5 | 4 | 10 | 1.54× |" in text
    assert "0.1 (0.09 … 0.11) |  |  | 0.35 |" in text
    assert "- Not SDXL." in text
    assert '"machine": "here"' in text
