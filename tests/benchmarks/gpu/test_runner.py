"""Phases in processes: limits, signals, failures, and going on where a call stopped."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.gpu.notes import read_json
from benchmarks.gpu.phases import Phase, Situation, phases, wanted
from benchmarks.gpu.runner import MORE, Course


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def phase(name: str, *codes: str, limit: float = 20, least: float = 0, **more: bool) -> Phase:
    def commands(here: Situation) -> list[list[str]]:
        return [python(code.replace("OUT", str(here.out))) for code in codes]

    return Phase(name, name.title(), limit, least, commands, **more)


def course(folder: Path, seconds: float = 30, **more: bool) -> tuple[Course, list[str]]:
    lines: list[str] = []
    return Course(folder, time.monotonic() + seconds, tell=lines.append, **more), lines


def states(folder: Path) -> dict[str, str]:
    return {name: found["status"] for name, found in read_json(folder / "phases.json").items()}


def test_a_failure_and_a_limit_lose_nothing_else(tmp_path: Path) -> None:
    steps = [
        phase("bad", "import sys; print('why'); sys.exit(5)", "print(6 * 7)"),
        phase("slow", "import time; time.sleep(60)", limit=0.5),
        phase("early", f"import sys; sys.exit({MORE})"),
        phase("good", "open('OUT/a.json', 'w').write('{}')", "print('second')"),
    ]
    run, lines = course(tmp_path)
    start = time.monotonic()
    run.run(steps)
    assert time.monotonic() - start < 25
    expected = {"bad": "failed", "slow": "stopped", "early": "stopped", "good": "done"}
    assert states(tmp_path) == expected
    found = read_json(tmp_path / "phases.json")["bad"]
    assert found["reason"] == "exit code 5"
    assert "why" in found["tail"]
    assert "42" in (tmp_path / "bad.log").read_text()  # its other commands run all the same
    assert (tmp_path / "good" / "a.json").exists()
    assert "second" in (tmp_path / "good.log").read_text()
    assert any(line.startswith("slow: stopped") for line in lines)


def test_a_later_call_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    count = "open('OUT/runs', 'a').write('x')"
    steps = [
        phase("done", count),
        phase("bad", f"{count}; raise SystemExit(1)"),
        phase("more", f"{count}; raise SystemExit({MORE})"),
    ]
    for retry in (False, False, True):
        course(tmp_path, retry=retry)[0].run(steps)
    runs = {step.name: len((tmp_path / step.name / "runs").read_text()) for step in steps}
    assert runs == {"done": 1, "bad": 2, "more": 3}


def test_too_little_time_waits_for_the_next_call(tmp_path: Path) -> None:
    steps = [phase("long", "print()", limit=300, least=100), phase("short", "print()")]
    course(tmp_path)[0].run(steps)
    assert states(tmp_path) == {"long": "waiting", "short": "done"}
    course(tmp_path, seconds=200)[0].run(steps)
    assert states(tmp_path) == {"long": "done", "short": "done"}


FAMILY = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open("OUT/child", "w").write(str(child.pid))
time.sleep(60)
"""


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended but was not fetched does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux")
def test_processes_of_processes_end_too(tmp_path: Path) -> None:
    course(tmp_path)[0].run([phase("family", FAMILY, limit=2.0)])
    child = int((tmp_path / "family" / "child").read_text())
    end = time.monotonic() + 5
    while alive(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive(child)


def test_commands_at_once(tmp_path: Path) -> None:
    """Each waits for a file that the other writes."""
    code = """
import pathlib, time
pathlib.Path("OUT/{mine}").touch()
while not pathlib.Path("OUT/{other}").exists(): time.sleep(0.02)
"""
    pair = [code.replace("{mine}", a).replace("{other}", b) for a, b in (("a", "b"), ("b", "a"))]
    course(tmp_path)[0].run([phase("pair", *pair, at_once=True)])
    assert states(tmp_path) == {"pair": "done"}


def test_an_interruption_ends_what_runs(tmp_path: Path) -> None:
    run, _ = course(tmp_path)
    run.after = interrupt
    with pytest.raises(KeyboardInterrupt):
        run.run([phase("first", "print()"), phase("second", "print()")])
    assert states(tmp_path) == {"first": "done"}


def interrupt() -> None:
    raise KeyboardInterrupt


def test_toys_and_reasons(tmp_path: Path) -> None:
    step = Phase("gpu", "Gpu", 9, 0, lambda here: [], on_gpus="no toy of it")
    course(tmp_path, toy=True)[0].run([step])
    found = read_json(tmp_path / "phases.json")["gpu"]
    assert (found["status"], found["reason"]) == ("skipped", "no toy of it")


def test_phases_by_name() -> None:
    every = [step.name for step in phases()]
    assert len(set(every)) == len(every)
    assert every[0] == "smoke"
    assert [step.name for step in wanted("")] == every
    assert [step.name for step in wanted("graphs, smoke")] == ["smoke", "graphs"]
    assert {step.name for step in wanted("race")} == {n for n in every if n.startswith("race-")}
    half = [step.name for step in wanted("race-half")]
    assert half == ["race-half-sdxl", "race-half-flux-dev"]
    with pytest.raises(ValueError, match="no phase 'rcae'; there are smoke"):
        wanted("rcae")


@pytest.mark.parametrize("toy", [False, True])
def test_every_command_can_be_parsed(tmp_path: Path, toy: bool) -> None:
    """What a phase calls takes the arguments that it gives."""
    parsers = known_parsers()
    here = Situation(tmp_path, tmp_path / "race", 300.0, toy)
    seen = set()
    for step in phases():
        for command in [] if toy and step.on_gpus else step.commands(here):
            name = command[2].removeprefix("benchmarks.")
            if name in parsers:
                parsers[name]().parse_args(command[3:])
                seen.add(name)
    assert seen == ({"speed", "gpu.smoke"} if toy else set(parsers))


def known_parsers() -> dict[str, Callable[[], object]]:
    from benchmarks import export, memory, planning_gpu, speed, train
    from benchmarks.gpu import graphs, smoke
    from benchmarks.quality import settings

    return {
        "speed": speed.arguments,
        "gpu.smoke": smoke.arguments,
        "gpu.graphs": graphs.arguments,
        "memory": memory.arguments,
        "export": export.arguments,
        "planning_gpu": planning_gpu.arguments,
        "train": train.arguments,
        "quality": settings.parser,
    }
