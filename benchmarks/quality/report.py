"""Rows as tables: JSON for programs, Markdown for readers, with what the numbers do not say."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.quality.measures import Estimate, bootstrap

DEFAULT = "toma 0.5"
_EQUAL = 0.97  # of a speed: what is this near is called equal
_UPWARDS = ("PSNR", "SSIM", "CLIP-T")  # more is better


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
        flops: share of the regions' and the model's FLOPs left, or None where unknown.
        found: measures by name.
        each: the first feature distance, pair by pair; rows of the same seeds and captions.
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


def at_equal_time(rows: list[Row], row: Row, measure: str) -> float | None:
    """What fewer steps reach in this row's time: between the two nearest numbers of steps."""
    if not row.merges or row.speedup is None or row.speedup <= 1:
        return None
    curve = sorted(
        (1 / one.speedup, one.found[measure].mean)
        for one in rows
        if measure in one.found
        and one.speedup
        and (one.group == "fewer steps" or one.name in ("plain", "one step fewer"))
    )
    return _between(curve, 1 / row.speedup)


def at_equal_flops(rows: list[Row], row: Row, measure: str) -> float | None:
    """The distance that toma reaches with another method's FLOPs, between its own ratios.

    Not merging ends the curve: all FLOPs, distance zero.
    """
    ours = [one for one in rows if one.group == "method" and one.name.startswith("toma ")]
    curve = sorted(
        (one.flops, one.found[measure].mean) for one in ours if one.flops and measure in one.found
    )
    if row.group != "method" or row in ours or not (curve and row.flops):
        return None
    return _between([*curve, (1.0, 0.0)], row.flops)


def _between(curve: list[tuple[float, float]], cost: float) -> float | None:
    """A distance on a curve of costs and distances; None for less than its smallest cost."""
    if not curve or cost < curve[0][0]:
        return None
    return float(np.interp(cost, *zip(*curve, strict=True)))


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


def write(
    folder: Path, name: str, rows: list[Row], about: dict[str, Any], notes: list[str], key: str
) -> None:
    """`{name}.json` and `{name}.md`.

    Args:
        folder: created where missing.
        name: of the model.
        rows: in order.
        about: machine, versions, command and settings.
        notes: said under the table.
        key: the measure that is compared with fewer steps at equal time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stored = [_stored(row, beside_default(rows, row)) for row in rows]
    text = json.dumps({**about, "rows": stored, "notes": notes}, indent=1)
    (folder / f"{name}.json").write_text(text + "\n")
    (folder / f"{name}.md").write_text(markdown(name, rows, about, notes, key))


def markdown(name: str, rows: list[Row], about: dict[str, Any], notes: list[str], key: str) -> str:
    """The table, and under it what it was made of."""
    columns = list(dict.fromkeys(measure for row in rows for measure in row.found))
    heads = [f"{column} {'↑' if column in _UPWARDS else '↓'}" for column in columns]
    equal = [f"{key}: minus that of {DEFAULT}"]
    equal += [f"{key}: toma in equal FLOPs", f"{key}: fewer steps in equal time"]
    head = ["", "pairs", "steps", "speed", "FLOPs", *heads, *equal]
    lines = [f"# {name}", "", _line(head), _line(["---", *["---:"] * (len(head) - 1)])]
    for group in dict.fromkeys(row.group for row in rows):
        lines.append(_line([f"**{group}**", *[""] * (len(head) - 1)]))
        lines += [
            _line([*_cells(row, columns, beside_default(rows, row)), *_equals(rows, row, key)])
            for row in rows
            if row.group == group
        ]
    lines += ["", *(f"- {note}" for note in notes), "", "```json"]
    lines += [json.dumps(about, indent=1), "```", ""]
    return "\n".join(lines)


def _stored(row: Row, beside: Estimate | None) -> dict[str, Any]:
    found = {name: list(estimate) for name, estimate in row.found.items()}
    kept = {key: value for key, value in vars(row).items() if key != "each"}
    return {**kept, "found": found, "beside_default": beside and list(beside)}


def _cells(row: Row, columns: list[str], beside: Estimate | None) -> list[str]:
    speed = "" if row.speedup is None else f"{row.speedup:.2f}×"
    flops = "" if row.flops is None else f"{row.flops:.0%}"
    found = [_cell(row.found.get(column)) for column in columns]
    start = [row.name, str(row.pairs), str(row.steps), speed, flops]
    return [*start, *found, _cell(beside)]


def _equals(rows: list[Row], row: Row, key: str) -> list[str]:
    both = at_equal_flops(rows, row, key), at_equal_time(rows, row, key)
    return ["" if one is None else f"{one:.3g}" for one in both]


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    return f"{estimate.mean:.3g} ({estimate.low:.3g} … {estimate.high:.3g})"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
