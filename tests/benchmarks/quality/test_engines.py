"""Several processes make the table of one, and paint nothing twice, also after an interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.quality import __main__ as command
from tests.benchmarks.generators import CAPTIONS

ROOT = Path(__file__).parents[3]
# Of the same environment as `accelerate launch`, which on CPUs begins one process alone.
LAUNCH = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m")
PATIENCE = 300  # seconds
BATCHES, ROWS = 4, 3  # of a row; the reference, and those below
pytestmark = pytest.mark.filterwarnings("ignore")


def arguments(folder: Path) -> list[str]:
    """A run of few rows that times nothing."""
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(CAPTIONS))
    text = f"--model emoji-sdxl --prompts {prompts} --work {folder / 'work'} --out {folder / 'out'}"
    text += " --pairs 8 --ablation-pairs 8 --steps 2 --batch 2 --backend eager --rounds 0"
    return [*f"{text} --device cpu --only".split(), "toma 0.5", "another seed"]


def rows(folder: Path) -> list[object]:
    found: list[object] = json.loads((folder / "out" / "emoji-sdxl-small-2.json").read_text())[
        "rows"
    ]
    return found


def painted(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Files of pictures: what they hold, and when they were written."""
    work = folder / "work"
    files = {str(file.relative_to(work)): file for file in work.rglob("*.safetensors")}
    return {name: (file.read_bytes(), file.stat().st_mtime_ns) for name, file in files.items()}


def pictures(folder: Path) -> dict[str, bytes]:
    return {name: content for name, (content, _) in painted(folder).items()}


def run(*python: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {"ACCELERATE_USE_CPU": "true", "RAY_worker_niceness": "0"}
    return subprocess.Popen(
        [sys.executable, *python],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def finished(process: subprocess.Popen[str]) -> str:
    """What it said."""
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said[-3000:]
    return said


def interrupted(process: subprocess.Popen[str], folder: Path) -> dict[str, tuple[bytes, int]]:
    """End a run, and all that it started, behind its first pictures; those that are there."""
    end = time.monotonic() + PATIENCE
    while len(painted(folder)) < 2 and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    return painted(folder)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run in this process."""
    folder = tmp_path_factory.mktemp("alone")
    assert command.main(arguments(folder)) == 0
    assert len(painted(folder)) == BATCHES * ROWS
    return folder


def assert_same(folder: Path, alone: Path, before: dict[str, tuple[bytes, int]]) -> None:
    """The table and the pictures of one process; what was painted before was left as it was."""
    assert rows(folder) == rows(alone)
    assert pictures(folder) == pictures(alone)
    assert {name: found for name, found in painted(folder).items() if name in before} == before


@pytest.mark.ranks
def test_two_processes_make_the_table_of_one(alone: Path, tmp_path: Path) -> None:
    given = (*LAUNCH, "benchmarks.quality", *arguments(tmp_path))
    before = interrupted(run(*given), tmp_path)
    assert 2 <= len(before) < BATCHES * ROWS
    said = finished(run(*given))
    assert_same(tmp_path, alone, before)
    assert said.count("emoji-sdxl-small-2: toma 0.5\n") == 2  # by each of them


def test_tasks_of_ray_make_the_table_of_one(alone: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install toma_fx[serve]")
    given = ("-m", "benchmarks.quality", *arguments(tmp_path), "--engine", "ray", "--shards", "2")
    before = interrupted(run(*given), tmp_path)
    assert 2 <= len(before) < BATCHES * ROWS
    finished(run(*given))
    assert_same(tmp_path, alone, before)
    before = painted(tmp_path)
    finished(run(*given))  # nothing is left to paint
    assert_same(tmp_path, alone, before)


def test_ray_is_asked_for_by_name_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install ray"):
        command.main([*arguments(tmp_path), "--engine", "ray"])
