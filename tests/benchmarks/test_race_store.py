"""Results survive an interruption, and are not mixed with those of another machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.race.store import MixedResultsError, Store

DONE = {"status": "done"}


def test_results_are_there_after_an_interruption(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "speed.json"
    store = Store.open(path)
    store.update({"a": DONE})
    store.begin({"b": {"model": "m"}, "c": {"model": "m"}})
    again = Store.open(path)
    assert again.finished("a")
    assert not again.finished("b")
    assert not again.finished("unheard of")
    assert not list(path.parent.glob("*.tmp"))


def test_what_ran_when_a_process_died_is_to_blame(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "speed.json")
    store.update({"a": DONE})
    store.begin({"b": {"model": "m"}})
    store.blame("exit code -9")
    held = Store.read(store.path).cases
    assert held == {"a": DONE, "b": {"model": "m", "status": "failed", "reason": "exit code -9"}}
    assert store.finished("b")
    assert not store.finished("b", retry=True)


def test_another_machine_needs_another_file(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "speed.json")
    store.facts["machine"]["cpu"] = "another"
    store.update({"a": DONE})
    with pytest.raises(MixedResultsError, match="--fresh"):
        Store.open(store.path)
    assert Store.open(store.path, fresh=True).cases == {}
    assert Store.read(store.path).facts["machine"]["cpu"] == "another"
