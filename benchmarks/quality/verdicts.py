"""What a table says in a few lines: who is nearer at equal cost, and beside the default."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.quality.measures import Estimate, bootstrap
from benchmarks.quality.rows import COSTS, Row, between, curve, fewer_steps, front, is_steps

DEFAULT = "toma 0.5"
_EQUAL = 0.97  # of a speed: what is this near is called equal
_RIVALS = ("method", "keys", "refresh", "cache")  # groups that toma is held against


def at_equal_time(rows: list[Row], row: Row, measure: str) -> float | None:
    """What fewer steps reach in this row's time: between the two nearest numbers of steps."""
    if row.speedup is None or row.speedup <= 1:
        return None
    return _steps_at(rows, row, "time", measure)


def steps_at_equal_flops(rows: list[Row], row: Row, measure: str) -> float | None:
    """What fewer steps reach with this row's FLOPs of the whole model, likewise."""
    return _steps_at(rows, row, "FLOPs", measure)


def _steps_at(rows: list[Row], row: Row, cost: str, measure: str) -> float | None:
    at = COSTS[cost](row)
    if not row.merges or at is None:
        return None
    return between(fewer_steps(rows, cost, measure), at)


def at_equal_flops(rows: list[Row], row: Row, measure: str) -> float | None:
    """The distance that toma reaches with a rival's FLOPs, between its own ratios.

    Not merging ends the curve: all FLOPs, distance zero.
    """
    ours = [one for one in rows if one.group == "method" and one.name.startswith("toma ")]
    points = curve(ours, "FLOPs", measure)
    if row.group not in _RIVALS or row in ours or not (points and row.flops):
        return None
    return between([*points, (1.0, 0.0)], row.flops)


def beside_default(rows: list[Row], row: Row) -> Estimate | None:
    """How much further from the plain picture than the default options' row, pair by pair.

    Pairs cancel what makes one picture harder than another; an interval below zero is closer.
    """
    default = next((one for one in rows if one.name == DEFAULT), None)
    if default is None or row is default or not row.merges or not row.each:
        return None
    count = min(len(row.each), len(default.each))
    return bootstrap(torch.tensor(row.each[:count]) - torch.tensor(default.each[:count]))


def verdicts(rows: list[Row], key: str) -> list[str]:
    """A line for each option that was varied: whether its default is the best at equal speed.

    A row is closer where the interval of its pairs beside the default is below zero, and no further
    where the interval reaches zero.
    Rows without times stand apart with their FLOPs: of their speed nothing is said. A last line
    compares methods at equal FLOPs by the measure `key`.
    """
    default = next((row for row in rows if row.name == DEFAULT), None)
    if default is None:
        return []
    lines = []
    for group in dict.fromkeys(row.group for row in rows if row.merges):
        found: dict[str, list[str]] = {}
        for row in rows:
            beside = beside_default(rows, row) if row.group == group else None
            ratio = row.speedup / default.speedup if row.speedup and default.speedup else None
            how = _better(beside, ratio) if beside else ""
            if how:
                found.setdefault(how, []).append(f"{row.name} ({_gain(row, beside, ratio)})")
        said = [f"{how}: {', '.join(names)}" for how, names in found.items()]
        lines.append(f"{group}, beside {DEFAULT}: {'; '.join(said) or 'none is better'}.")
    return [*lines, *_equal_flops(rows, key)]


def _better(beside: Estimate, ratio: float | None) -> str:
    """In what a row beats the default without losing elsewhere; empty where it does not.

    Args:
        beside: the row's distance minus the default's.
        ratio: of their speeds; None where one is untimed.
    """
    if ratio is None:
        return "closer, untimed" if beside.high < 0 else ""
    if beside.high < 0:
        return "closer, no slower" if ratio >= _EQUAL else ""
    return "faster, no further" if beside.low <= 0 and ratio >= 1 / _EQUAL else ""


def _gain(row: Row, beside: Estimate, ratio: float | None) -> str:
    if ratio is not None:
        return f"{beside.mean:+.2g}, {ratio:.2f}× its speed"
    cost = "" if row.flops is None else f", {row.flops:.0%} of the FLOPs"
    return f"{beside.mean:+.2g}{cost}"


def _equal_flops(rows: list[Row], key: str) -> list[str]:
    found = [(row, at_equal_flops(rows, row, key)) for row in rows]
    said = [
        f"{row.name} ({row.flops:.0%}) at {row.found[key].mean:.3g}, toma at {ours:.3g}"
        for row, ours in found
        if ours is not None
    ]
    return [f"At equal FLOPs, toma between its ratios: {'; '.join(said)}."] if said else []


def against_steps(rows: list[Row], key: str) -> list[str]:
    """For time and FLOPs: which rows are nearer than as many steps cost, and which are not."""
    lines = []
    for cost, at_equal in (("FLOPs", steps_at_equal_flops), ("time", at_equal_time)):
        said: dict[str, list[str]] = {"nearer": [], "no nearer": []}
        for row in rows:
            theirs = at_equal(rows, row, key) if key in row.found else None
            if theirs is not None:
                ours = row.found[key].mean
                side = "nearer" if ours < theirs else "no nearer"
                said[side].append(f"{row.name} ({ours:.3g}, they {theirs:.3g})")
        found = [f"{side}: {', '.join(names)}" for side, names in said.items() if names]
        if found:
            lines.append(f"Beside fewer steps at equal {cost}, {'; '.join(found)}.")
    return lines


def fronts(rows: Sequence[Row], key: str) -> list[str]:
    """For every cost: the rows that nothing cheaper is nearer than."""
    lines = []
    taking = [row for row in rows if row.merges or is_steps(row)]
    for cost in COSTS:
        found = [
            f"{row.name} ({COSTS[cost](row):.0%}, {row.found[key].mean:.3g})"
            for row in front(taking, cost, key)
        ]
        if found:
            lines.append(f"Nothing nearer for less {cost}: {', '.join(found)}.")
    return lines
