"""Packages where toma_fx is not installed: plain torch, and C++."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import toma_fx
from tests.ahead.conftest import Built
from tests.ahead.small import CONFIG, Small, relative, small_call
from toma_fx.ahead.transform import exported

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def plain(small_package: Built, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of a process without toma_fx, on the ten steps of a picture."""
    folder = tmp_path_factory.mktemp("plain")
    files = [folder / name for name in ("calls.pt", "program.pt2", "results.pt")]
    torch.save([small_call(step=step) for step in range(10)], files[0])
    program = exported(Small(), (), small_call())
    torch.export.save(toma_fx.transform(program, CONFIG), files[1])
    script = str(Path(__file__).with_name("plain_process.py"))
    environment = {**os.environ, "PYTHONPATH": ""}
    command = [sys.executable, script, str(small_package.path), *map(str, files)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    results: dict[str, Any] = torch.load(files[2])
    return results


def test_a_package_runs_without_toma_fx(plain: dict[str, Any], small: toma_fx.LoadedModel) -> None:
    """Bit for bit, its plans kept from call to call."""
    assert plain["toma_fx"] == []
    for step, result in enumerate(plain["package"]):
        assert torch.equal(result, small(**small_call(step=step))["noise"])
    assert (small.stats().selections, small.stats().reuses) == (3, 5)


@pytest.mark.parametrize("how", ["graph", "lowered"])
def test_a_saved_program_runs_without_toma_fx(plain: dict[str, Any], how: str) -> None:
    assert plain["namespaces"] == ["aten", "higher_order", "python"]  # python: getitem
    for result, expected in zip(plain[how], plain["package"], strict=True):
        assert relative(result, expected) < 1e-4


def cpp_tools() -> list[str]:
    return [tool for tool in ("cmake", "c++") if shutil.which(tool) is None]


@pytest.mark.skipif(bool(cpp_tools()), reason=f"not installed: {', '.join(cpp_tools())}")
def test_cpp_prints_the_same_numbers(flux_package: Built, tmp_path: Path) -> None:
    """Ten steps of Euler's method, as `examples/cpp/denoise.cpp` does them."""
    source, build = ROOT / "examples" / "cpp", tmp_path / "build"
    prefix = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    for command in (["-S", source, "-B", build, prefix], ["--build", build]):
        done = subprocess.run(["cmake", *map(str, command)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    package, call = toma_fx.load(flux_package.path), dict(flux_package.call)
    (entry,) = package.metadata["entries"]
    names = [leaf["path"] for leaf in entry["inputs"] if leaf["shape"] is not None]
    torch.save([call[name] for name in names], tmp_path / "inputs.pt")
    command = [build / "denoise", flux_package.path, tmp_path / "inputs.pt"]
    command += ["timestep", "hidden_states"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *lines, counts = done.stdout.splitlines()
    assert len(lines) == 10
    start = call["timestep"]
    for step, line in enumerate(lines):
        call["timestep"] = start * (1 - step / 10)
        call["hidden_states"] = call["hidden_states"] - package(**call)[0] / 10
        expected = call["hidden_states"].abs().mean().item()
        assert float(line.split()[-1]) == pytest.approx(expected, rel=1e-6)
    stats = package.stats()
    assert counts == (
        f"selections {stats.selections} weighings {stats.weighings} reuses {stats.reuses}"
    )
    wrong = subprocess.run(
        [*map(str, command[:-1]), "nothing"], capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 1
    assert "no input nothing" in wrong.stderr
