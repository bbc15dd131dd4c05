"""Figures of the README and of `docs/` are those of `benchmarks/results`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import compile_time, video_windows
from tests.docs.pages import README, ROOT, tables

RESULTS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs"

# Rows of the README: the contestant of the race, its ratio, and the row of the quality table.
ROWS = {
    "`ratio=0.25`": ("toma", 0.25, "toma 0.25"),
    "`ratio=0.5`, the default": ("toma", 0.5, "toma 0.5"),
    '`ratio=0.5, scope="block"`': ("toma, scope block", 0.5, "toma 0.5, scope block"),
    "`ratio=0.5`, planned at every step": (
        "toma, plans every step",
        0.5,
        "toma 0.5, select_every 1, weigh_every 1",
    ),
    "`ratio=0.75`": ("toma", 0.75, "toma 0.75"),
    '`method="tomesd"`, 0.5': ("tomesd", 0.5, "tomesd 0.5"),
    '`method="tofu"`, 0.5': ("tofu", 0.5, "tofu 0.5"),
    '`method="todo"`, 0.75': ("todo", 0.75, "todo 0.75"),
    '`method="refresh"`, 0.5': ("refresh", 0.5, "refresh 0.5"),
    "half of the steps instead": ("half of the steps", None, "50% of the steps"),
    "another seed, for scale": ("another seed", None, "another seed"),
}
STAGES = {"SDXL": "sdxl-stage", "Flux": "flux-stage"}
CONTESTANTS = ("toma", "toma, scope block", "tomesd", "tofu", "todo")


def race(model: str, size: str, contestant: str, ratio: float | None) -> str:
    """A speedup of the race, as a page writes it; nothing where it was not measured."""
    cases = _json("speed_cpu.json")["cases"]
    speed = cases.get(f"{model}/{size}/{contestant}/{ratio}", {}).get("speedup")
    return "" if speed is None else f"{speed:.2f}×"


def painted(table: str) -> dict[str, Any]:
    """Rows of a quality table, by name."""
    return {found["name"]: found for found in _json(f"quality/{table}.json")["rows"]}


def painted_in_bfloat16(table: str) -> dict[str, Any]:
    """Rows that a table in float32 has none of."""
    there = (RESULTS / "quality" / f"{table}-bfloat16.json").exists()
    return painted(f"{table}-bfloat16") if there else {}


def quality(model: str, row: str) -> tuple[str, str]:
    """Distance and speed of a row of the quality table."""
    rows = {**painted(f"{model}-small-12"), **painted(f"{model}-small")}
    speed = rows[row]["speedup"] if row not in ("another seed", "another caption") else None
    distance = rows[row]["found"]["SSCD distance"][0]
    return f"{distance:.3f}", "" if speed is None else f"{speed:.2f}×"


def test_the_table_of_the_readme() -> None:
    (_, *rows), *_ = tables(README)
    assert [row[0] for row in rows] == list(ROWS)
    for setting, *figures in rows:
        contestant, ratio, row = ROWS[setting]
        changes = [quality(model, row)[0] for model in ("emoji-sdxl", "emoji-flux")]
        speeds = [race(stage, "512x512", contestant, ratio) for stage in STAGES.values()]
        if setting.startswith("half"):
            speeds = [quality(model, row)[1] for model in ("emoji-sdxl", "emoji-flux")]
        assert figures == [*speeds, *changes], setting


def test_the_table_of_pictures() -> None:
    (head, *rows) = next(t for t in tables(DOCS / "pictures.md") if t[0][0] == "row")
    assert head[1::2] == ["emoji-sdxl", "emoji-flux"]
    for row, *figures in rows:
        assert figures == [*quality("emoji-sdxl", row), *quality("emoji-flux", row)], row


@pytest.mark.parametrize("steps", [28, 12, 4])
def test_the_tables_of_memory(steps: int) -> None:
    (_, *rows) = next(t for t in tables(DOCS / "pictures.md") if t[0][0] == f"{steps} steps")
    for name, *figures in rows:
        wanted = []
        for model in ("emoji-sdxl", "emoji-flux"):
            table = f"{model}-small-{steps}"
            found = painted(table).get(name) or painted_in_bfloat16(table).get(name)
            wanted += _near_and_left(found) if found else ["", ""]
        assert figures == wanted, name


def _near_and_left(row: dict[str, Any]) -> list[str]:
    left = row["blocks"]
    return [f"{row['found']['SSCD distance'][0]:.3f}", "" if left is None else f"{left:.0%}"]


def test_the_table_of_the_race() -> None:
    (_, *rows) = next(t for t in tables(DOCS / "benchmarks.md") if t[0][0] == "model")
    for model, *speeds in rows:
        found = re.fullmatch(r"stage of (\w+), (\d+)(?:×(\d+)|²)", model)
        assert found
        width, height = found[2], found[3] or found[2]
        size = f"{height}x{width}"
        expected = [race(STAGES[found[1]], size, one, 0.5) for one in CONTESTANTS]
        assert speeds == expected, model


@pytest.mark.parametrize("page", [README, DOCS / "benchmarks.md"], ids=lambda page: page.name)
def test_growth(page: Path) -> None:
    sides = ("512x512", "1024x1024", "2048x2048")
    figures = [race("narrow", side, "toma", 0.5) for side in sides]
    text = " ".join(page.read_text(encoding="utf-8").split())
    assert re.search(rf"{figures[0]}, {figures[1]}(?:,| and) {figures[2]}", text)


def test_the_table_of_compile_times() -> None:
    """`python -m benchmarks.compile_time` prints its rows."""
    (_, *rows) = next(t for t in tables(DOCS / "benchmarks.md") if t[0][0] == "cold compile")
    assert rows == compile_time.doc_rows(_json("compile_time_cpu.json")["cold_compile"])


def test_the_table_of_serving() -> None:
    (head, *rows) = next(t for t in tables(DOCS / "scale.md") if "orders" in t[0][0])
    found = _json("serve_cpu.json")
    assert head[0] == f"{found['requests']} orders, {found['clients']} clients, 2 replicas"
    again, fates = found["asked again"], found["fates"]
    ends = found["memory, MiB"].values()
    memory = [f"{end['first']:.0f} → {end['last']:.0f} MiB" for end in ends if end]
    assert [row[1] for row in rows] == [
        str(fates["equal"]),
        str(found["requests"] - fates["equal"]),
        f"{again['busy']:,} times",
        str(found["abandoned"]),
        f"{sum(again.values()) - again['busy']} times",
        ", ".join(memory),
    ]
    assert all("24 of 24 regions merged" in said for said in found["merging"].values())


def test_windows_of_a_video() -> None:
    page = (RESULTS / "video_windows_cpu.md").read_text(encoding="utf-8")
    assert page == video_windows.markdown(_json("video_windows_cpu.json"))
    row = next(line for line in page.splitlines() if line.startswith("| `(4, 4, 4)`"))
    still, slow, quick, fast = (float(cell.split()[0]) for cell in row.split("|")[2:6])
    text = (DOCS / "works-with.md").read_text(encoding="utf-8")
    assert re.findall(r"(\d\.\d\d) times", text) == [f"{x:.2f}" for x in (still, slow, quick, fast)]


def _json(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))
