"""All results as one Markdown file, and packed into a few files for the way back."""

from __future__ import annotations

import re
import shutil
import tarfile
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu import targets
from benchmarks.gpu.notes import read_json, write_json
from benchmarks.machine import describe, in_words

FILES, LARGEST = 8, 15 * 2**20
"""Files of a pack, and bytes of one: what a machine that is lent may send back at once."""

_RESULTS = (".json", ".md", ".log", ".csv", ".png", ".xml")


def write(folder: Path) -> None:
    """`summary.md` and `summary.json` from whatever is there."""
    state = read_json(folder / "phases.json")
    facts = _facts(folder)
    lines = ["# On a GPU", "", in_words(facts), "", *_phases(state)]
    races = {path.stem: read_json(path) for path in sorted((folder / "race").glob("*.json"))}
    for race in races.values():
        lines += targets.markdown(race.get("cases", {}))
    for name, part in _PARTS.items():
        if (folder / name).is_dir():
            lines += part(folder / name)
    for path in sorted((folder / "race").glob("*.md")):
        lines += _parts_of_steps(races.get(path.stem, {}).get("cases", {}))
        lines += [re.sub(r"^#", "##", path.read_text(), flags=re.MULTILINE), ""]
    (folder / "summary.md").write_text("\n".join(lines) + "\n")
    write_json(folder / "summary.json", {**facts, "phases": state, "race": races})


def _facts(folder: Path) -> dict[str, Any]:
    """Of the machine that measured, which need not be this one."""
    for path in sorted(folder.glob("*/*.json")):
        found = read_json(path)
        if {"machine", "versions", "command"} <= found.keys():
            return {name: found[name] for name in ("machine", "versions", "command")}
    return describe()


def _phases(state: dict[str, Any]) -> list[str]:
    lines = ["| phase | | seconds | how it went |", "|---|---|---|---|"]
    for name, found in state.items():
        how = f"{found['status']}: {found['reason']}" if found.get("reason") else found["status"]
        lines.append(f"| {name} | {found['title']} | {found['seconds']:.0f} | {how} |")
    return [*lines, ""]


def _smoke(folder: Path) -> list[str]:
    rows = _rows(folder)
    head = [
        "| model | type | method | error | allowed | change | |",
        "|---|---|---|---|---|---|---|",
    ]
    lines = [
        f"| {row['model']} | {row['dtype']} | {row['method']} | {_number(row, 'error')} | "
        f"{_number(row, 'allowed')} | {_number(row, 'change')} | {_verdict(row)} |"
        for row in rows
    ]
    return ["## Beside a CPU in float32", "", *head, *lines, ""]


def _graphs(folder: Path) -> list[str]:
    head = [
        "| model | method | captures | later | waits | error | host, graphs | host, without | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines = []
    for row in _rows(folder):
        cells = [row["model"], row["method"]]
        cells += [str(row.get(name, "")) for name in ("captures", "captures_later")]
        cells += [", ".join(row.get("waits", ())) or "none", _number(row, "error")]
        cells += [_micro(row, name) for name in ("host_seconds", "host_seconds_without")]
        lines.append(f"| {' | '.join(cells)} | {_verdict(row)} |")
    return ["## CUDA graphs", "", *head, *lines, ""]


def _kernels(folder: Path) -> list[str]:
    lines = ["## Planning kernels", ""]
    tests = folder / "tests.xml"
    if tests.exists():
        lines += [_tests(tests), ""]
    planned = read_json(folder / "planning.json").get("rows", [])
    if planned:
        lines += [
            "| window | destinations | pairs | what | phase | µs |",
            "|---|---|---|---|---|---|",
        ]
    for row in planned:
        pairs = "yes" if row["pairs"] else "no"
        lines.append(
            f"| {row['size']} | {row['count']} | {pairs} | {row['what']} | {row['phase']} | "
            f"{row['microseconds']:.1f} |"
        )
    return [*lines, ""]


def _tests(path: Path) -> str:
    """The counts of a JUnit file, and what failed."""
    suites = list(ET.parse(path).getroot().iter("testsuite"))
    names = ("tests", "failures", "errors", "skipped")
    counts = {name: sum(int(suite.get(name, 0)) for suite in suites) for name in names}
    failed = [
        case.get("name", "")
        for suite in suites
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    words = ", ".join(f"{count} {name}" for name, count in counts.items())
    return f"Against the reference: {words}. {' '.join(failed)}".rstrip()


def _memory(folder: Path) -> list[str]:
    found = read_json(folder / "memory.json").get("peak_bytes", {})
    peaks = ", ".join(f"{name} {bytes_ / 2**20:.0f} MiB" for name, bytes_ in found.items())
    return ["## Peak memory of a step", "", peaks or "nothing was measured", ""]


def _package(folder: Path) -> list[str]:
    lines = ["## Packages", ""]
    for row in read_json(folder / "export.json").get("rows", []):
        size, seconds = row["package_bytes"] / 2**20, row["export_seconds"]
        lines.append(
            f"- {row['model']}, {row['side']}²: {size:.0f} MiB, exported in {seconds:.0f} s; "
            f"jitted over package {row['speedup_over_jitted']:.2f}; "
            f"error {row['largest_relative_error']:.1e}"
        )
    return [*lines, ""]


def _parts_of_steps(cases: dict[str, dict[str, Any]]) -> list[str]:
    found = [record for record in cases.values() if record.get("parts")]
    if not found:
        return []
    names = list(found[0]["parts"])
    lines = ["## Where the time of a step goes, ms", ""]
    lines += ["| model | pixels | contestant | ratio | " + " | ".join(names) + " |"]
    lines += ["|" + "---|" * (4 + len(names))]
    for record in found:
        ratio = "" if record["ratio"] is None else f"{record['ratio']:g}"
        parts = " | ".join(f"{record['parts'].get(name, 0) * 1e3:.2f}" for name in names)
        where = f"{record['model']} | {record['width']}×{record['height']}"
        lines.append(f"| {where} | {record['contestant']} | {ratio} | {parts} |")
    return [*lines, ""]


_PARTS: dict[str, Callable[[Path], list[str]]] = {
    "smoke": _smoke,
    "kernels": _kernels,
    "graphs": _graphs,
    "memory": _memory,
    "package": _package,
}


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("*.json")) for row in read_json(path)["rows"]]


def _verdict(row: dict[str, Any]) -> str:
    if row.get("skipped"):
        return f"skipped: {row['skipped']}"
    return "good" if row["good"] else row.get("reason", "BAD")


def _number(row: dict[str, Any], name: str) -> str:
    return f"{row[name]:.2g}" if name in row else ""


def _micro(row: dict[str, Any], name: str) -> str:
    return f"{row[name] * 1e6:.0f} µs" if name in row else ""


def pack(folder: Path, target: Path) -> list[Path]:
    """At most `FILES` files of at most `LARGEST` bytes; returns them.

    The summary, the results as an archive (`tar -xzf` brings the folder back, and a later call
    goes on), and weights in pieces, as many as fit: `cat NAME.0* > NAME` puts one together.
    """
    target.mkdir(parents=True, exist_ok=True)
    made = [Path(shutil.copy(folder / name, target)) for name in ("summary.md", "summary.json")]
    archive = target / "results.tar.gz"
    with tarfile.open(archive, "w:gz") as opened:
        for path in sorted(folder.rglob("*")):
            if path.suffix in _RESULTS and path.stat().st_size <= LARGEST and _kept(path, folder):
                opened.add(path, path.relative_to(folder))
    made.append(archive)
    for weights in sorted((folder / "train").rglob("*-full.safetensors")):
        pieces = -(-weights.stat().st_size // LARGEST)
        if len(made) + pieces <= FILES:
            made += _split(weights, target)
    return made


def _kept(path: Path, folder: Path) -> bool:
    """Results, and not the pictures that they were computed from."""
    return path.is_file() and "work" not in path.relative_to(folder).parts


def _split(file: Path, target: Path) -> list[Path]:
    made = []
    with file.open("rb") as opened:
        while piece := opened.read(LARGEST):
            made.append(target / f"{file.name}.{len(made):02d}")
            made[-1].write_bytes(piece)
    return made
