"""All phases that a CPU can try, by the one command; a second call finds them done."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("accelerate")

from benchmarks.gpu.notes import read_json


def run(folder: Path, *more: str) -> str:
    command = [sys.executable, "-m", "benchmarks.gpu", "--toy", "--out", str(folder), *more]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_a_dry_run(tmp_path: Path) -> None:
    out = run(tmp_path / "run", "--pack", str(tmp_path / "pack"))
    state = read_json(tmp_path / "run" / "phases.json")
    assert {found["status"] for found in state.values()} == {"done", "skipped"}, out
    assert state["smoke"]["status"] == state["race-half-sdxl"]["status"] == "done"
    assert all(found["reason"] for found in state.values() if found["status"] == "skipped")
    race = read_json(tmp_path / "run" / "race" / "speed_cpu_toy.json")["cases"]
    assert [case["status"] for case in race.values()] == ["done"] * 2
    merged = race["flux-toy/256x256/toma/0.5"]
    assert merged["ceiling"] > 1
    assert merged["change"] > 1e-3
    assert len(merged["all"]) == len(merged["plain"]) == 10
    text = (tmp_path / "pack" / "summary.md").read_text()
    assert "a toy (FluxTransformer2DModel)" in text
    assert "| flux-toy | bfloat16 | toma |" in text
    assert len(list((tmp_path / "pack").iterdir())) <= 8
    assert "smoke: done before" in run(tmp_path / "run", "--only", "smoke")


def test_without_a_gpu_and_without_a_toy(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path)]
    environment = {"CUDA_VISIBLE_DEVICES": "", "PATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert "there is no CUDA device here" in done.stderr
