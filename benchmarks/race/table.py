"""Tables of a race: Markdown for the file, a short one for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from rich.table import Table

from benchmarks.machine import in_words
from benchmarks.race.contestants import CHAMPION, REFERENCE, lossy
from benchmarks.race.models import TITLES
from benchmarks.race.store import Store
from toma_fx.report import seconds_text

STEPS = {"sdxl": 50, "sdxl-stage": 50}  # of a picture; Flux.1-dev's pipeline takes 28
COLUMNS = (
    "contestant",
    "ratio",
    "step",
    "quartiles",
    "speedup",
    "FLOP ceiling",
    "share of it",
    "kernels",
    "peak",
    "first step",
    "change",
    "remarks",
)
NOTES = """\
Every contestant is timed in turns with plain `torch.compile`; speedup is the ratio of both medians
over the schedule, planning included, and quartiles are those of its usual step. All
use the same attention kernel. FLOP ceiling: what counting multiply-adds of the whole model allows.
Peak: memory of a step above what rests. First step: cold compile included, unless it is marked with
`~` (compiled with warm caches). Change: relative difference of the result from the plain one, with
random weights; it shows that something was merged, not how good pictures are. Fewer steps: how many
plain steps fit into the time of a merged picture.
"""
Record = dict[str, Any]


def groups(store: Store) -> dict[tuple[str, int, int], list[Record]]:
    """Records by model and picture size, in the order in which they ran."""
    found: dict[tuple[str, int, int], list[Record]] = {}
    for record in store.cases.values():
        key = (record["model"], record["height"], record["width"])
        found.setdefault(key, []).append(record)
    for records in found.values():
        records.sort(key=lambda record: (record["ratio"] is not None, record["ratio"] or 0.0))
    return found


def markdown(store: Store) -> str:
    """Everything: machine, a table for each group, and who is fastest."""
    lines = ["# The race", "", in_words(store.facts), "", NOTES]
    for (model, height, width), records in groups(store).items():
        tokens = records[0]["tokens"]
        lines += [f"## {TITLES[model]}, {width}×{height}, {tokens:,} tokens", ""]
        lines += ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
        lines += ["| " + " | ".join(row(record)) + " |" for record in records]
        lines += ["| " + " | ".join(cells) + " |" for cells in fewer_steps(records)]
        lines += ["", *verdicts(records), ""]
    return "\n".join(lines)


def row(record: Record) -> list[str]:
    """The cells of one record; one that has no numbers says why."""
    ratio = "" if record["ratio"] is None else f"{record['ratio']:g}"
    head = [record["contestant"], ratio]
    if record["status"] != "done":
        reason = f"{record['status']}: {record.get('reason', '')}".replace("|", "/")
        return [*head, *[""] * (len(COLUMNS) - 3), reason]
    ceiling, share = record["ceiling"], ""
    if ceiling:
        share = f"{record['speedup'] / ceiling:.2f}"
    low, high = record["quartiles"]
    change = record.get("change")
    return [
        *head,
        seconds_text(record["seconds"]),
        f"{seconds_text(low)} … {seconds_text(high)}",
        f"{record['speedup']:.2f}×",
        f"{ceiling:.2f}×" if ceiling else "",
        share,
        str(record["kernels"]),
        f"{record['peak_bytes'] / 2**20:.0f} MiB",
        f"{'' if record['cold'] else '~'}{record['first_step_seconds']:.0f} s",
        "" if change is None else f"{change:.1%}",
        "; ".join([*record["notes"], *_graphs(record)]),
    ]


def _graphs(record: Record) -> list[str]:
    return [f"{record['graphs']} graphs"] if record["graphs"] > 1 else []


def fewer_steps(records: list[Record]) -> Iterator[list[str]]:
    """Plain steps that fit into the time of a merged picture, for each ratio."""
    for record in done(records):
        if record["contestant"] == CHAMPION:
            steps = STEPS.get(record["model"], 28)
            fit = max(1, math.floor(steps / record["speedup"]))
            cells = ["fewer steps", f"{record['ratio']:g}", "", "", f"{steps / fit:.2f}×"]
            remark = f"{fit} of {steps} plain steps take the time of {CHAMPION}"
            yield [*cells, *[""] * (len(COLUMNS) - 6), remark]


def verdicts(records: list[Record]) -> Iterator[str]:
    """For each ratio: which contestant that changes the picture is the fastest."""
    for ratio in sorted({r["ratio"] for r in done(records) if r["ratio"] is not None}):
        rivals = [r for r in done(records) if r["ratio"] == ratio and lossy(r["contestant"])]
        best = max(rivals, key=lambda record: record["speedup"])
        found = {record["contestant"]: record["speedup"] for record in rivals}
        text = f"- Ratio {ratio:g}: {best['contestant']} is the fastest, {best['speedup']:.2f}×"
        if best["contestant"] != CHAMPION and CHAMPION in found:
            text += f"; {CHAMPION} {found[CHAMPION]:.2f}×"
        yield f"{text} (of {len(rivals)})."


def done(records: list[Record]) -> list[Record]:
    return [record for record in records if record["status"] == "done"]


def console(store: Store) -> Table:
    """One row for each contestant that ran: time and speedup."""
    title = "speedup over plain torch.compile" if REFERENCE else ""
    table = Table("model", "pixels", "contestant", "ratio", "step", "speedup", title=title)
    for (model, height, width), records in groups(store).items():
        for record in done(records):
            cells = row(record)
            table.add_row(model, f"{width}×{height}", *cells[:3], cells[4])
        table.add_section()
    return table
