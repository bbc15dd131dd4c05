"""Inductor's question for vector instructions is asked once, while the passes run."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from torch._inductor import cpu_vec_isa

from toma_fx import probe


@pytest.fixture
def asked() -> Iterator[list[threading.Thread]]:
    """The threads that ask, in a process in which nobody has yet."""
    found: list[threading.Thread] = []
    probe._begun.cache_clear()

    def ask() -> None:
        found.append(threading.current_thread())

    with mock.patch.object(cpu_vec_isa, "pick_vec_isa", ask):
        yield found
    probe._begun.cache_clear()


def test_once_and_done_behind_the_block(asked: list[threading.Thread]) -> None:
    for _ in range(2):
        with probe.probing([torch.zeros(1), 3]):
            pass
        (thread,) = asked
        assert not thread.is_alive()
        assert thread is not threading.current_thread()


def test_a_failing_block_waits_too(asked: list[threading.Thread]) -> None:
    with pytest.raises(KeyError), probe.probing([torch.zeros(1)]):
        raise KeyError
    assert not asked[0].is_alive()


@pytest.mark.parametrize("device", ["meta", None])
def test_not_for_other_devices(asked: list[threading.Thread], device: str | None) -> None:
    with probe.probing([torch.zeros(1, device=device)] if device else []):
        pass
    assert not asked


def test_what_fails_is_left_to_inductor() -> None:
    probe._begun.cache_clear()
    fails = mock.patch.object(cpu_vec_isa, "pick_vec_isa", side_effect=RuntimeError)
    with fails, probe.probing([torch.zeros(1)]):
        pass
    probe._begun.cache_clear()
