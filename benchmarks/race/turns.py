"""One process at a time on the device, while several compile.

Inductor chooses among forms of a kernel by timing them: in a crowd it would choose by accident.
The lock is one on a file, which the system takes back when a process dies.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch._inductor.output_code import CompiledFxGraph
from torch._inductor.runtime.benchmarking import benchmarker

from benchmarks.race.profiled import synchronize


class FileLock:
    """A lock between processes; one process may enter it again inside of itself.

    Args:
        path: of a file that all of them can write.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: Any = None
        self._depth = 0

    def __enter__(self) -> None:
        if self._depth == 0:
            self._file = self._path.open("w")
            fcntl.flock(self._file, fcntl.LOCK_EX)
        self._depth += 1

    def __exit__(self, *_: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._file.close()


@contextmanager
def device_in_turns(lock: FileLock, device: torch.device) -> Iterator[None]:
    """Inside, compiled graphs and timings of kernels wait for those of other processes."""

    def alone(run: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with lock:
                result = run(*args, **kwargs)
                synchronize(device)
                return result

        return call

    before = CompiledFxGraph.__call__
    CompiledFxGraph.__call__ = alone(before)  # type: ignore[method-assign]
    methods = ("benchmark", "benchmark_gpu")
    for name in methods:
        setattr(benchmarker, name, alone(getattr(benchmarker, name)))
    try:
        yield
    finally:
        CompiledFxGraph.__call__ = before  # type: ignore[method-assign]
        for name in methods:
            delattr(benchmarker, name)
