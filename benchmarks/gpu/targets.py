"""What the race should show on an H100 or H200 in bfloat16, beside what it shows.

Speedups over plain `torch.compile`, batches as pipelines use them. Parts are shares of a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# Model, side in pixels, ratio, speedup of "toma".
SPEEDUPS = (
    ("sdxl", 1024, 0.5, 1.5),
    ("sdxl", 1024, 0.75, 2.1),
    ("flux-dev", 1024, 0.5, 1.8),
    ("flux-dev", 1024, 0.75, 2.8),
    ("sdxl", 2048, 0.5, 2.0),
    ("flux-dev", 2048, 0.5, 2.2),
)
REFRESH = 0.97  # of the speed of "toma"
PARTS = {("planning",): 0.005, ("merge", "unmerge"): 0.05}
_OURS = ("toma", "toma, scope block")


def markdown(cases: dict[str, dict[str, Any]]) -> list[str]:
    """A table of targets and of what was measured; nothing without a measurement.

    Args:
        cases: records of a race by their keys.
    """
    done = [record for record in cases.values() if record["status"] == "done"]
    rows = [*_speedups(done), *_refresh(done), *_parts(done)]
    if not rows:
        return []
    head = ["| what | target | measured | |", "|---|---|---|---|"]
    return ["## Targets", "", *head, *rows, ""]


def _speedups(done: list[dict[str, Any]]) -> Iterator[str]:
    for model, side, ratio, target in SPEEDUPS:
        for name in _OURS:
            for record in done:
                if _is(record, name, model, side, ratio):
                    what = f"{name}: {model}, {side}², ratio {ratio:g}"
                    yield _row(what, f"{target:.1f}×", record["speedup"] >= target, _x(record))


def _refresh(done: list[dict[str, Any]]) -> Iterator[str]:
    for record in done:
        if record["contestant"] != "refresh":
            continue
        place = (record["model"], record["height"], record["ratio"])
        rivals = [other for other in done if _is(other, "toma", *place)]
        for other in rivals:
            share = record["speedup"] / other["speedup"]
            what = f"refresh over toma: {place[0]}, {place[1]}², ratio {place[2]:g}"
            yield _row(what, f"{REFRESH}", share >= REFRESH, f"{share:.2f}")


def _parts(done: list[dict[str, Any]]) -> Iterator[str]:
    for record in done:
        parts = record.get("parts")
        if not parts or record["ratio"] is None:
            continue
        total = sum(parts.values())
        for names, most in PARTS.items():
            share = sum(parts.get(name, 0.0) for name in names) / total
            where = f"{record['contestant']}, {record['model']}, {record['height']}²"
            what = f"{' and '.join(names)}: {where}, ratio {record['ratio']:g}"
            yield _row(what, f"at most {most:.1%}", share <= most, f"{share:.2%}")


def _is(record: dict[str, Any], name: str, model: str, side: int, ratio: float) -> bool:
    found = (record["contestant"], record["model"], record["height"], record["ratio"])
    return found == (name, model, side, ratio)


def _x(record: dict[str, Any]) -> str:
    low, high = record["speedup_quartiles"]
    return f"{record['speedup']:.2f}× ({low:.2f} … {high:.2f})"


def _row(what: str, target: str, met: bool, found: str) -> str:
    return f"| {what} | {target} | {found} | {'met' if met else 'missed'} |"
