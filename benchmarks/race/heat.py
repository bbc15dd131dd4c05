"""A heat: some contestants beside plain `torch.compile`, compiled, warmed, timed in turns.

On CUDA a turn is a whole cycle of steps, queued as a pipeline queues them, with an event after
each; on a CPU it is one step, so that what disturbs the machine disturbs all contestants alike.
"""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache

from benchmarks.race.contestants import REFERENCE
from benchmarks.race.grid import Case
from benchmarks.race.pace import (
    CYCLE,
    phase_seconds,
    quartiles,
    step_seconds,
    usual,
)
from benchmarks.race.profiled import host_peak, kernel_count, profile_step, synchronize
from benchmarks.race.start import Entry, Setting, SkipError, start

SETTLING = 3
"""Steps before timing. The first compiles, and CUDA graphs are recorded in the second."""


@dataclass
class Ready:
    """A contestant that has compiled, with what was learned of it on the way."""

    entry: Entry
    facts: dict[str, Any]

    def result(self) -> torch.Tensor:
        """Of the step after settling; a copy, since CUDA graphs write the next one over it."""
        return self.entry.step(SETTLING).clone()

    def compare(self, expected: torch.Tensor) -> None:
        """Note how far the result is from the plain model's."""
        difference = self.result().float() - expected.float()
        self.facts["change"] = float(difference.norm() / expected.float().norm())


def prepare(
    case: Case, setting: Setting, cold: bool, expected: torch.Tensor | None = None
) -> Ready:
    """Start, compile, settle and profile one contestant.

    Args:
        cold: compile with empty caches.
        expected: the plain model's result of the step after settling.

    Raises:
        SkipError: it cannot take part.
    """
    if cold:
        with fresh_cache():
            entry, facts = _compiled(case, setting)
    else:
        entry, facts = _compiled(case, setting)
    facts["cold"] = cold
    entry.check(entry)
    peak = _device_peak(entry, setting.device)
    found = profile_step(lambda: entry.step(SETTLING), setting.device)
    facts["kernels"] = kernel_count(found, setting.device)
    facts["peak_bytes"] = host_peak(found) if peak is None else peak
    ready = Ready(entry, facts)
    if expected is not None:
        ready.compare(expected)
    return ready


def _compiled(case: Case, setting: Setting) -> tuple[Entry, dict[str, Any]]:
    graphs = counters["stats"]["unique_graphs"]
    start_time = time.perf_counter()
    entry = start(setting, case.contestant.how, case.contestant.options, case.ratio)
    entry.step(0)
    synchronize(setting.device)
    seconds = time.perf_counter() - start_time
    return entry, {
        "first_step_seconds": seconds,
        "graphs": counters["stats"]["unique_graphs"] - graphs,
    }


def _device_peak(entry: Entry, device: torch.device) -> int | None:
    """Bytes above what rests, over the remaining steps of settling; None on a CPU."""
    if device.type != "cuda":
        for step in range(1, SETTLING):
            entry.step(step)
        return None
    synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    resting = torch.cuda.memory_allocated(device)
    for step in range(1, SETTLING):
        entry.step(step)
    synchronize(device)
    return torch.cuda.max_memory_allocated(device) - resting


def laps(
    steps: dict[str, Callable[[int], Any]], cycles: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each step of each contestant, in turns, over whole cycles."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in turns(cycles, device):
        for name, step in steps.items():
            seconds[name] += step_times(step, turn, device)
    return seconds


def turns(cycles: int, device: torch.device) -> Iterator[range]:
    """Which steps a contestant runs before the next one's turn."""
    length = CYCLE if device.type == "cuda" else 1
    return (range(first, first + length) for first in range(0, cycles * CYCLE, length))


def step_times(
    step: Callable[[int], Any], numbers: Iterable[int], device: torch.device
) -> list[float]:
    """Seconds of each of some steps."""
    timed = _device_seconds if device.type == "cuda" else _host_seconds
    return timed(step, numbers)


def _host_seconds(step: Callable[[int], Any], numbers: Iterable[int]) -> list[float]:
    found = []
    for number in numbers:
        start_time = time.perf_counter()
        step(number)
        found.append(time.perf_counter() - start_time)
    return found


def _device_seconds(step: Callable[[int], Any], numbers: Iterable[int]) -> list[float]:
    torch.cuda.synchronize()
    events = [torch.cuda.Event(enable_timing=True)]
    events[0].record()
    for number in numbers:
        step(number)
        events.append(torch.cuda.Event(enable_timing=True))
        events[-1].record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) / 1e3 for before, after in pairwise(events)]


def race(
    heat: list[Case],
    setting: Setting,
    reference: Ready,
    *,
    cycles: int,
    cold: bool,
    flops: int | None,
) -> dict[str, dict[str, Any]]:
    """Records of a heat by the keys of its cases; what fails has its error as its record."""
    expected = reference.result()
    ready: dict[str, Ready] = {}
    records: dict[str, dict[str, Any]] = {}
    for case in heat:
        if case.contestant.name == REFERENCE:
            ready[case.key] = reference
            continue
        try:
            ready[case.key] = prepare(case, setting, cold and case.cold, expected)
        except SkipError as reason:
            records[case.key] = {**case.labels, "status": "skipped", "reason": str(reason)}
        except Exception as error:
            records[case.key] = {**case.labels, **failed(error)}
            _let_go(setting.device)
    steps = {REFERENCE: reference.entry.step}
    steps |= {key: found.entry.step for key, found in ready.items() if found is not reference}
    seconds = laps(steps, cycles, setting.device)
    labels = {case.key: case.labels for case in heat}
    for key, found in ready.items():
        mine = seconds[REFERENCE if found is reference else key]
        records[key] = {**labels[key], **record(found, mine, seconds[REFERENCE], flops)}
    return records


def record(
    ready: Ready, seconds: list[float], plain: list[float], flops: int | None
) -> dict[str, Any]:
    """What is kept of a contestant: numbers, and every single time."""
    phases, report = ready.entry.phases, ready.entry.report
    mine, theirs = step_seconds(seconds, phases), step_seconds(plain, lambda step: "step")
    speedups = [b / a for a, b in zip(seconds, plain, strict=True)]
    ceiling = None
    if report is not None and flops:
        ceiling = flops / (flops - report.flops_before + report.flops_after)
    return {
        "status": "done",
        "seconds": mine,
        "quartiles": quartiles(usual(seconds, phases)),
        "phases": phase_seconds(seconds, phases),
        "speedup": theirs / mine,
        "speedup_quartiles": quartiles(usual(speedups, phases)),
        "ceiling": ceiling,
        "notes": ready.entry.notes,
        **ready.facts,
        "all": seconds,
        "plain": plain,
    }


def failed(error: Exception) -> dict[str, Any]:
    """The record of a case that broke: its first line, and the innermost frames."""
    text = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    frames = traceback.format_exception(error)[-6:]
    return {"status": "failed", "reason": text[:300], "trace": "".join(frames)[-3000:]}


def _let_go(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
