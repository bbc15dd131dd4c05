"""Runs phases: each in processes of its own, each with a limit, each with a word on how it went.

Nothing that one phase does can lose what another found. A call that ends early, by its own limit
or by a signal, leaves a folder with which the next call goes on.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.notes import read_json, write_json
from benchmarks.gpu.phases import Command, Phase, Situation

MORE = 3
"""Exit code of a command that ended by itself, in time, before it was through."""

_GRACE, _TAIL = 5.0, 2000
_QUIET = {"OMP_WAIT_POLICY": "passive", "KINETO_LOG_LEVEL": "5", "PYTHONUNBUFFERED": "1"}
_OVER = ("done", "skipped")


@dataclass
class Course:
    """A folder of results and how far it has come.

    Args:
        folder: of results; goes on where it holds some.
        until: by `time.monotonic()`, when nothing may run any more.
        toy: tiny models on a CPU.
        retry: run again what failed.
        tell: called with a line for each phase.
        after: called when a phase is over.
    """

    folder: Path
    until: float
    toy: bool = False
    retry: bool = False
    tell: Callable[[str], None] = print
    after: Callable[[], None] = lambda: None

    @property
    def state(self) -> dict[str, Any]:
        return read_json(self.folder / "phases.json")

    def run(self, phases: list[Phase]) -> None:
        """All phases that are not over, as long as there is time."""
        for phase in phases:
            before = self.state.get(phase.name, {}).get("status")
            if before in _OVER or (before == "failed" and not self.retry):
                self.tell(f"{phase.name}: {before} before")
                continue
            self._note(phase, **self._run(phase))
            self.after()

    def _run(self, phase: Phase) -> dict[str, Any]:
        if self.toy and phase.on_gpus:
            return {"status": "skipped", "reason": phase.on_gpus}
        seconds = min(phase.limit, self.until - time.monotonic())
        if seconds < (1 if self.toy else phase.least):
            return {"status": "waiting", "reason": f"{max(0, seconds):.0f} s were left"}
        out = self.folder / phase.name
        out.mkdir(parents=True, exist_ok=True)
        here = Situation(out, self.folder / "race", seconds, self.toy)
        start = time.monotonic()
        found = _carry_out(phase, here, self.folder / f"{phase.name}.log", start + seconds)
        return {**found, "seconds": round(time.monotonic() - start, 1)}

    def _note(self, phase: Phase, **found: Any) -> None:
        state = self.state
        earlier = state.get(phase.name, {})
        if found["status"] == "waiting" and earlier:
            found = {**earlier, "reason": found["reason"]}
        seconds = round(found.get("seconds", 0) + earlier.get("seconds", 0), 1)
        write_json(
            self.folder / "phases.json",
            {**state, phase.name: {"title": phase.title, **found, "seconds": seconds}},
        )
        reason = f": {found['reason']}" if found.get("reason") else ""
        self.tell(f"{phase.name}: {found['status']}{reason} ({seconds:.0f} s)")


def _carry_out(phase: Phase, here: Situation, log: Path, until: float) -> dict[str, Any]:
    """Run the commands; the worst of what happened is what happened."""
    commands = phase.commands(here)
    groups = [commands] if phase.at_once else [[command] for command in commands]
    codes: list[int | None] = []
    for group in groups:
        codes += _run_group(group, log, until)
    if None in codes or MORE in codes:
        return {"status": "stopped", "reason": "the time was over: the next call goes on"}
    bad = [code for code in codes if code]
    if bad:
        return {"status": "failed", "reason": f"exit code {bad[0]}", "tail": _tail(log)}
    return {"status": "done"}


def _run_group(commands: list[Command], log: Path, until: float) -> list[int | None]:
    """Exit codes; None for what had to be ended."""
    with log.open("a") as opened:
        running = [_start(command, opened) for command in commands]
        try:
            return [_finish(process, until) for process in running]
        finally:
            for process in running:
                end(process)


def _start(command: Command, log: Any) -> subprocess.Popen[bytes]:
    """In a session of its own, so that all of its processes can be ended together."""
    log.write(f"$ {' '.join(command)}\n")
    log.flush()
    environment = {**_QUIET, **os.environ}
    return subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
    )


def _finish(process: subprocess.Popen[bytes], until: float) -> int | None:
    try:
        return process.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        end(process)
        return None


def end(process: subprocess.Popen[bytes]) -> None:
    """End a command with all processes that it started: asked first, then killed."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            continue
        if number == signal.SIGTERM and not _left(process.pid):
            break


def _left(group: int) -> bool:
    """Whether any process of a group is alive."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-_TAIL:]
