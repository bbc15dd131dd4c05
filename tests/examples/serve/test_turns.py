"""One thread at a time, in the order in which they came; a turn that ends is never lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from examples.serve.turns import Turns


def threads(*runs: Callable[[], None]) -> None:
    """Started one after the other, so that their order is known."""
    found = [threading.Thread(target=run) for run in runs]
    for thread in found:
        thread.start()
        time.sleep(0.05)
    for thread in found:
        thread.join(10)
        assert not thread.is_alive()


def test_turns_go_round() -> None:
    turns, seen = Turns(), []
    together = threading.Event()

    def steps(name: str, count: int) -> None:
        with turns.turn():
            together.wait(10)
            for _ in range(count):
                seen.append(name)
                turns.pass_on()

    threads(lambda: steps("a", 4), lambda: steps("b", 2), lambda: steps("c", 3), together.set)
    assert "".join(seen) == "abcabcaca"


def test_nobody_runs_beside_another() -> None:
    turns, inside, most = Turns(), [], []

    def steps() -> None:
        for _ in range(20):
            with turns.turn():
                for _ in range(5):
                    inside.append(1)
                    time.sleep(0)
                    most.append(len(inside))
                    inside.pop()
                    turns.pass_on()

    threads(*[steps] * 6)
    assert max(most) == 1


def test_a_turn_that_fails_ends() -> None:
    turns = Turns()
    with pytest.raises(KeyError), turns.turn():
        raise KeyError
    with turns.turn():
        turns.pass_on()  # nobody waits
