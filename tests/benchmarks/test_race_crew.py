"""Contestants in processes of their own: who dies or fails is alone in that."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("accelerate")

from benchmarks.race import crew, member
from benchmarks.race.contestants import REFERENCE, Contestant
from benchmarks.race.crew import race_apart
from benchmarks.race.grid import Case
from benchmarks.race.member import Post
from benchmarks.race.turns import FileLock


def case(contestant: Contestant, ratio: float | None = None) -> Case:
    return Case("flux-toy", 256, 256, contestant, ratio)


PLAIN = case(Contestant(REFERENCE, "eager"))


def post(case: Case) -> Post:
    return Post(case, "cpu", "eager", 1)


class Idle:
    """A worker that computes nothing."""

    def __init__(self, given: Post) -> None:
        self.name = given.case.contestant.name
        if self.name == "dies":
            os._exit(3)
        if self.name == "late":
            time.sleep(600)
        if self.name == "fails":
            raise ValueError("no reason")

    def result(self) -> torch.Tensor:
        return torch.ones(2)

    def compare(self, expected: torch.Tensor) -> None:
        if self.name == "dies later":
            os._exit(4)

    def time(self, numbers: range) -> list[float]:
        return [0.1] * len(numbers)

    def record(self, seconds: list[float], plain: list[float], flops: int) -> dict[str, object]:
        return {"status": "done", "all": seconds, "plain": plain, "flops": flops}


def test_who_dies_or_fails_leaves_the_others() -> None:
    names = ("good", "dies", "dies later", "fails")
    heat = [PLAIN, *(case(Contestant(name, "toma"), 0.5) for name in names)]
    until = time.time() + 300
    records = race_apart(heat, PLAIN, post, cycles=1, flops=7, until=until, worker=Idle)
    found = {key.split("/")[2]: record for key, record in records.items()}
    assert found[REFERENCE]["status"] == found["good"]["status"] == "done"
    assert found["good"]["all"] == found["good"]["plain"] == [0.1] * 10
    assert found["good"]["flops"] == 7
    assert found["good"]["ratio"] == 0.5
    assert "exit code 3" in found["dies"]["reason"]
    assert "exit code 4" in found["dies later"]["reason"]
    assert found["fails"]["reason"] == "ValueError: no reason"
    assert {found[name]["status"] for name in ("dies", "dies later", "fails")} == {"failed"}


def test_who_is_late_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member, "_GRACE", 0.2)
    late = member.Member(post(case(Contestant("late", "eager"))), tmp_path / "lock", Idle)
    with pytest.raises(member.MemberError, match="the time was over") as raised:
        late.ready(time.time())
    assert raised.value.record["status"] == "stopped"
    late.leave()
    assert not late.process.is_alive()


def test_without_the_plain_model_there_is_no_race() -> None:
    lost = case(Contestant("dies", "eager"))
    heat = [case(Contestant("good", "toma"), 0.5)]
    records = race_apart(heat, lost, post, cycles=1, flops=7, until=time.time() + 60, worker=Idle)
    (record,) = records.values()
    assert record["status"] == "failed"
    assert "plain torch.compile did not run" in record["reason"]


def test_slow_ones_start_when_the_others_are_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Recorder:
        def __init__(self, given: Post, lock: Path, worker: type) -> None:
            self.name = given.case.contestant.name
            order.append(f"start {self.name}")

        def ready(self, until: float) -> None:
            order.append(f"ready {self.name}")

        def ask(self, what: str, *arguments: object) -> object:
            return [] if what == "time" else {"status": "done"}

        def leave(self) -> None:
            pass

    monkeypatch.setattr(crew, "Member", Recorder)
    heat = [
        case(Contestant("tuned", "compile", slow_to_compile=True)),
        case(Contestant("quick", "eager")),
    ]
    race_apart(heat, PLAIN, post, cycles=1, flops=1, until=0)
    starts = [f"start {REFERENCE}", "start quick", f"ready {REFERENCE}", "ready quick"]
    assert order == [*starts, "start tuned", "ready tuned"]


def _holds(path: Path, act: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        with FileLock(path):
            act()
        os._exit(0)
    return pid


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_lock_is_entered_twice_and_dies_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    lock = FileLock(path)
    with lock, lock:
        pass
    taken = tmp_path / "taken"

    def hold_and_die() -> None:
        taken.touch()
        time.sleep(0.2)
        os._exit(1)

    pid = _holds(path, hold_and_die)
    while not taken.exists():
        time.sleep(0.01)
    begin = time.monotonic()
    with lock:
        assert time.monotonic() - begin > 0.05
    os.waitpid(pid, 0)
