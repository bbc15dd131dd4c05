"""Timing of contestants in turns: what disturbs a round disturbs all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch


def interleaved(
    runs: Mapping[str, Callable[[], Any]],
    rounds: int | Iterable[Any],
    device: torch.device | None = None,
) -> dict[str, list[float]]:
    """Seconds of each run, one after the other in every round.

    Args:
        runs: by name, warm already: the first call of a compiled model compiles.
        rounds: how many, or an iterable over them (a progress bar).
        device: a CUDA device is waited for after each run.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds) if isinstance(rounds, int) else rounds:
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if device is not None and device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds[name].append(time.perf_counter() - start)
    return seconds
