"""Rows as tables: JSON for programs, Markdown for readers, with what the numbers do not say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.quality.measures import Estimate
from benchmarks.quality.rows import Row
from benchmarks.quality.verdicts import (
    DEFAULT,
    at_equal_flops,
    at_equal_time,
    beside_default,
    steps_at_equal_flops,
)

_UPWARDS = ("PSNR", "SSIM", "CLIP-T")  # more is better
_SHARES = ("FLOPs", "blocks' FLOPs")
_EQUALS = {
    "toma in equal FLOPs": at_equal_flops,
    "fewer steps in equal FLOPs": steps_at_equal_flops,
    "fewer steps in equal time": at_equal_time,
}


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
    equal += [f"{key}: {what}" for what in _EQUALS]
    head = ["", "pairs", "steps", "speed", *_SHARES, *heads, *equal]
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
    shares = ["" if part is None else f"{part:.0%}" for part in (row.flops, row.blocks)]
    found = [_cell(row.found.get(column)) for column in columns]
    start = [row.name, str(row.pairs), str(row.steps), speed, *shares]
    return [*start, *found, _cell(beside)]


def _equals(rows: list[Row], row: Row, key: str) -> list[str]:
    found = [at_equal(rows, row, key) for at_equal in _EQUALS.values()]
    return ["" if one is None else f"{one:.3g}" for one in found]


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    return f"{estimate.mean:.3g} ({estimate.low:.3g} … {estimate.high:.3g})"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
