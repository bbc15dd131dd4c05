"""What decides whether first contact went well, and whether a step waits."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from benchmarks.gpu.graphs import MARK, host_waits
from benchmarks.gpu.smoke import distance


def event(name: str, start: float, end: float | None = None) -> SimpleNamespace:
    interval = SimpleNamespace(start=start, end=start + 1 if end is None else end)
    return SimpleNamespace(name=name, time_range=interval)


def test_waits_count_within_steps_alone() -> None:
    events = [
        event(MARK, 0, 10),
        event("cudaLaunchKernel", 1),
        event("cudaMemcpyAsync", 2),
        event("cudaStreamSynchronize", 3),
        event("cudaDeviceSynchronize", 15),
        event(MARK, 20, 30),
        event("Memcpy DtoH (Device -> Pageable)", 25),
        event("Memcpy HtoD (Pageable -> Device)", 26),
        event("cudaEventSynchronize", 31),
    ]
    assert host_waits(events) == ["cudaStreamSynchronize", "Memcpy DtoH (Device -> Pageable)"]
    assert host_waits(events[1:5]) == []


def test_nothing_is_near_to_what_is_not_a_number() -> None:
    expected = torch.ones(4)
    assert distance(expected * 1.5, expected) == 0.5
    broken = torch.tensor([1.0, float("nan"), 1.0, 1.0])
    assert not distance(broken, expected) <= 1e9
