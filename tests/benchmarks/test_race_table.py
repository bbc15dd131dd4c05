"""What a reader of a race sees: numbers, reasons, and who is fastest; and that a race resumes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import speed
from benchmarks.race import plots, table
from benchmarks.race.contestants import CHAMPION, CONTESTANTS, REFERENCE
from benchmarks.race.grid import Case, cases_of
from benchmarks.race.store import Store


def record(case: Case, speedup: float = 1.0) -> dict[str, Any]:
    phases = {"select": 2.0, "weigh": 1.5, "reuse": 1.0}
    return {
        **case.labels,
        "status": "done",
        "seconds": 1.15 / speedup,
        "quartiles": (0.9 / speedup, 1.1 / speedup),
        "phases": phases if case.contestant.how == "toma" else {"step": 1.0},
        "speedup": speedup,
        "speedup_quartiles": (speedup, speedup),
        "ceiling": 2.0 if case.ratio else None,
        "notes": ["3 of 4 regions merged"],
        "graphs": 1,
        "kernels": 42,
        "peak_bytes": 2**20,
        "first_step_seconds": 30.0,
        "cold": case.cold,
        "change": 0.1,
        "all": [],
        "plain": [],
    }


def case(name: str, ratio: float | None = None, side: int = 512) -> Case:
    return Case("sdxl-stage", side, side, CONTESTANTS[name], ratio)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.open(tmp_path / "speed_cpu.json")
    for entry, speedup in (
        (case(REFERENCE), 1.0),
        (case(CHAMPION, 0.5), 1.6),
        (case("tomesd", 0.5), 1.2),
        (case(CHAMPION, 0.75), 2.0),
        (case("todo", 0.75), 2.2),
    ):
        store.cases[entry.key] = record(entry, speedup)
    skipped = {"status": "skipped", "reason": "unknown option 'span'"}
    entry = case("toma, scope span 2", 0.5)
    store.cases[entry.key] = {**entry.labels, **skipped}
    store.save()
    return store


def test_markdown_has_numbers_reasons_and_verdicts(store: Store) -> None:
    text = table.markdown(store)
    for part in ("torch ", "1.60×", "2.00×", "0.80", "| 42 |", "1 MiB", "3 of 4 regions merged"):
        assert part in text
    assert "skipped: unknown option 'span'" in text
    assert "Ratio 0.5: toma is the fastest, 1.60× (of 2)." in text
    assert "Ratio 0.75: todo is the fastest, 2.20×; toma 2.00× (of 2)." in text
    assert "31 of 50 plain steps take the time of toma" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1


def test_only_warm_compiles_are_marked(store: Store) -> None:
    rows = {
        line.split("|")[1].strip(): line
        for line in table.markdown(store).splitlines()[10:]
        if "|" in line
    }
    assert "~30 s" in rows["tomesd"]
    assert "~30 s" not in rows[REFERENCE]


def test_plots_need_points_and_then_are_written(store: Store, tmp_path: Path) -> None:
    stem = tmp_path / "speed_cpu"
    plots.draw(store, stem)
    assert (tmp_path / "speed_cpu_ratio.png").exists()
    assert not (tmp_path / "speed_cpu_growth.png").exists()
    entry = case(CHAMPION, 0.5, 1024)
    store.cases[entry.key] = record(entry, 1.8)
    plots.draw(store, stem)
    assert (tmp_path / "speed_cpu_growth.png").exists()
    assert (tmp_path / "speed_cpu_tokens.png").exists()


def test_planning_share_is_what_its_steps_cost_above_reusing() -> None:
    found = {"phases": {"select": 4.0, "reuse": 1.0}, "seconds": 2.0}
    assert plots.planning_share(found) == pytest.approx(0.5)


def given(*words: str) -> argparse.Namespace:
    return speed.arguments().parse_args(words)


def test_a_run_goes_on_after_a_process_that_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = cases_of("cpu", "quick", models=["flux-stage"])
    store = Store.open(tmp_path / "speed_cpu.json")
    store.save()
    calls: list[str] = []

    def process(command: list[str], env: dict[str, str]) -> SimpleNamespace:
        calls.append(command[command.index("--one") + 1])
        child = Store.read(store.path)
        if len(calls) == 1:
            child.begin({cases[1].key: cases[1].labels})
            return SimpleNamespace(returncode=-9)
        child.update({cases[0].key: record(cases[0])})
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(speed.subprocess, "run", process)
    monkeypatch.setattr(sys, "argv", ["speed"])
    speed.run_processes(cases, store, given())
    assert [store.cases[c.key]["status"] for c in cases] == ["done", "failed"]
    assert "exit code -9" in store.cases[cases[1].key]["reason"]
    speed.run_processes(cases, Store.open(store.path), given())
    assert calls == ["flux-stage/512x512"] * 2


def test_sizes_are_written_as_width_by_height() -> None:
    assert speed.size_of("832x1216") == (1216, 832)
    assert speed.size_of("512") == (512, 512)
