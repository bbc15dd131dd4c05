"""What a reader sees of a folder of results, and what comes back of it."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import summary, targets
from benchmarks.gpu.notes import Notes, read_json, write_json


def record(name: str, speedup: float, ratio: float | None = 0.5, **more: Any) -> dict[str, Any]:
    labels = {"model": "sdxl", "height": 1024, "width": 1024, "contestant": name, "ratio": ratio}
    return {
        **labels,
        "status": "done",
        "speedup": speedup,
        "speedup_quartiles": (speedup - 0.01, speedup + 0.01),
        **more,
    }


PARTS = {"attention": 9e-3, "merge": 1e-4, "unmerge": 3e-4, "planning": 1e-4, "other": 5e-4}


def test_targets_beside_measurements() -> None:
    cases = {
        "a": record("toma", 1.6, parts=PARTS),
        "b": record("refresh", 1.5),
        "c": record("toma", 1.9, 0.75),
        "d": {**record("toma", 9.0), "status": "failed"},
        "e": record("torch.compile", 1.0, None),
    }
    lines = targets.markdown(cases)
    text = "\n".join(lines)
    assert "| toma: sdxl, 1024², ratio 0.5 | 1.5× | 1.60× (1.59 … 1.61) | met |" in lines
    assert "| toma: sdxl, 1024², ratio 0.75 | 2.1× | 1.90× (1.89 … 1.91) | missed |" in lines
    assert "| refresh over toma: sdxl, 1024², ratio 0.5 | 0.97 | 0.94 | missed |" in lines
    assert "| planning: toma, sdxl, 1024², ratio 0.5 | at most 0.5% | 1.00% | missed |" in lines
    assert "| merge and unmerge: toma, sdxl, 1024²" in text
    assert "4.00% | met" in text
    assert "9.0" not in text
    assert targets.markdown({}) == []


def results(folder: Path) -> None:
    smoke = Notes(folder / "smoke" / "sdxl.json")
    labels = {"model": "sdxl-small", "dtype": "float32"}
    good = {"error": 1e-5, "allowed": 1e-3, "change": 0.1, "good": True}
    smoke.add({**labels, "method": "toma", **good})
    smoke.add({**labels, "method": "tofu", "reason": "KeyError: 7", "good": False})
    smoke.add({**labels, "method": "todo", "skipped": "nothing merged", "good": True})
    graphs = Notes(folder / "graphs" / "sdxl.json")
    found = {"captures": 2, "captures_later": 0, "waits": [], "error": 0.0, "good": True}
    times = {"host_seconds": 1e-4, "host_seconds_without": 5e-3}
    graphs.add({"model": "sdxl-small", "method": "toma", **found, **times})
    state = {"smoke": {"title": "Smoke", "status": "failed", "reason": "exit code 1", "seconds": 9}}
    write_json(folder / "phases.json", state)
    (folder / "smoke.log").write_text("log")


def test_a_summary_of_what_is_there(tmp_path: Path) -> None:
    results(tmp_path)
    junit = '<testsuites><testsuite tests="3" failures="1" errors="0" skipped="1">'
    junit += '<testcase name="test_a"><failure/></testcase></testsuite></testsuites>'
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "tests.xml").write_text(junit)
    summary.write(tmp_path)
    text = (tmp_path / "summary.md").read_text()
    for part in (
        "| smoke | Smoke | 9 | failed: exit code 1 |",
        "| sdxl-small | float32 | toma | 1e-05 | 0.001 | 0.1 | good |",
        "| sdxl-small | float32 | tofu |  |  |  | KeyError: 7 |",
        "skipped: nothing merged",
        "| sdxl-small | toma | 2 | 0 | none | 0 | 100 µs | 5000 µs | good |",
        "Against the reference: 3 tests, 1 failures, 0 errors, 1 skipped. test_a",
        "torch ",
    ):
        assert part in text
    assert "Packages" not in text
    assert read_json(tmp_path / "summary.json")["phases"]["smoke"]["status"] == "failed"


def test_a_pack_is_few_files_and_brings_the_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summary, "LARGEST", 1000)
    folder, target, back = (tmp_path / name for name in ("run", "pack", "back"))
    results(folder)
    weights = folder / "train" / "emoji-sdxl" / "emoji-sdxl-full.safetensors"
    too_large = folder / "train" / "emoji-zebra" / "emoji-zebra-full.safetensors"
    for path, size in ((weights, 2500), (too_large, 9000)):
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(i % 251 for i in range(size)))
    (folder / "quality" / "work").mkdir(parents=True)
    (folder / "quality" / "work" / "scores.json").write_text("{}")
    (folder / "loss.csv").write_text("1" * 2000)
    summary.write(folder)
    made = summary.pack(folder, target)
    assert len(made) <= summary.FILES
    assert sorted(made) == sorted(target.iterdir())
    pieces = sorted(target.glob("emoji-sdxl-full.safetensors.*"))
    assert b"".join(piece.read_bytes() for piece in pieces) == weights.read_bytes()
    assert not list(target.glob("emoji-zebra*"))
    with tarfile.open(target / "results.tar.gz") as archive:
        archive.extractall(back, filter="data")
    assert read_json(back / "phases.json") == read_json(folder / "phases.json")
    assert (back / "smoke" / "sdxl.json").exists()
    assert not (back / "quality").exists()
    assert not (back / "loss.csv").exists()


def test_notes_are_whole_after_every_row(tmp_path: Path) -> None:
    notes = Notes(tmp_path / "deep" / "notes.json")
    assert read_json(notes.path)["rows"] == []
    notes.add({"a": 1})
    found = read_json(notes.path)
    assert found["rows"] == [{"a": 1}]
    assert {"machine", "versions", "command"} <= found.keys()
    notes.path.write_text("{")
    assert read_json(notes.path) == {}
    assert read_json(tmp_path / "none.json") == {}
