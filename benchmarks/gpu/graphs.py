"""CUDA graphs: one capture whatever the phase, no wait of the host in a step, equal results.

    python -m benchmarks.gpu.graphs sdxl-small --out graphs.json

The same model merged twice, with `mode="reduce-overhead"` and without, steps of two pictures so
that plans are selected, weighed and reused by one graph. Waits are looked for in two ways: CUDA's
own check (`torch.cuda.set_sync_debug_mode("error")`), and the calls of the runtime in a profile.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

import toma_fx
from benchmarks.gpu.notes import Notes
from benchmarks.gpu.smoke import distance
from benchmarks.race.heat import failed
from benchmarks.race.models import arguments_of, model_of
from benchmarks.race.start import Entry, Setting, setting_of, start
from toma_fx.config import METHODS

WARM, STEPS, MARK = 4, 8, "a step"
"""Steps that warm up and record; steps of a picture; how a step is called in the profile."""

_WAITS = (
    "cudaDeviceSynchronize",
    "cudaStreamSynchronize",
    "cudaEventSynchronize",
    "cudaMemcpy",  # the call itself; cudaMemcpyAsync does not wait
)
_EQUAL = 1e-3


def host_waits(events: Iterable[Any]) -> list[str]:
    """Names of the calls within marked steps that make the host wait for the device.

    Args:
        events: of a profile, `FunctionEvent`s: names, and intervals in microseconds.
    """
    events = list(events)
    steps = [event.time_range for event in events if event.name == MARK]
    found = [event for event in events if event.name in _WAITS or "DtoH" in event.name]
    return [
        event.name
        for event in found
        if any(step.start <= event.time_range.start <= step.end for step in steps)
    ]


@contextmanager
def captures() -> Iterator[list[float]]:
    """The time of every capture of a CUDA graph inside."""
    found: list[float] = []
    graph = torch.cuda.CUDAGraph
    begin = graph.capture_begin

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        found.append(time.perf_counter())
        return begin(self, *args, **kwargs)

    graph.capture_begin = counted
    try:
        yield found
    finally:
        graph.capture_begin = begin


def pictures(entry: Entry, count: int) -> list[Tensor]:
    """Results of all steps of some pictures, copied: the next step writes over them."""
    return [entry.step(number).clone() for _ in range(count) for number in range(STEPS)]


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def profiled(entry: Entry) -> list[str]:
    """What waits within the steps of one picture."""
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=activities) as found:
        for number in range(STEPS):
            with record_function(MARK):
                entry.step(number)
        torch.cuda.synchronize()
    return host_waits(found.events())


def host_seconds(entry: Entry) -> float:
    """What a step costs the host: medians of queueing, the device idle at the start of each."""
    seconds = []
    for number in range(STEPS):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        entry.step(number)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def measure(setting: Setting, method: str, ratio: float) -> dict[str, Any]:
    """One method, with graphs beside without."""
    options = {"method": method, "min_tokens": 16}
    direct = start(setting, "toma", options, ratio)
    expected = pictures(direct, 2)
    toma_fx.reset(setting.model)
    with captures() as captured:
        entry = start(setting, "toma", {**options, "mode": "reduce-overhead"}, ratio)
        for number in range(WARM):
            entry.step(number)
        early = len(captured)
        found = pictures(entry, 2)
        with no_waiting():
            for number in range(STEPS):
                entry.step(number)
        waits = profiled(entry)
        late = len(captured) - early
    error = max(distance(a.float(), b.float()) for a, b in zip(found, expected, strict=True))
    return {
        "captures": early,
        "captures_later": late,
        "waits": waits,
        "error": error,
        "host_seconds": host_seconds(entry),
        "host_seconds_without": host_seconds(direct),
        "good": early >= 1 and late == 0 and not waits and error <= _EQUAL,
    }


@torch.no_grad()
def run(given: argparse.Namespace) -> bool:
    os.environ["TEARDOWN_CUPTI"] = "0"  # a profiler that leaves takes CUDA graphs with it
    notes, device, good = Notes(given.out), torch.device("cuda"), True
    model = model_of(given.model, device)
    arguments = arguments_of(given.model, model, given.side, given.side)
    setting = setting_of(model, arguments, device)
    for method in given.methods:
        try:
            row = measure(setting, method, given.ratio)
        except Exception as error:
            row = {**failed(error), "good": False}
        notes.add({"model": given.model, "method": method, **row})
        print({**notes.rows[-1], "trace": None}, flush=True)
        good = good and row["good"]
    return good


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--side", type=int, default=512, help="pixels")
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--out", type=Path, required=True)
    return parser


def main() -> int:
    return 0 if run(arguments().parse_args()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
