"""Peak memory of a step, merged beside plain, above what rests between steps.

    python -m benchmarks.memory --out benchmarks/results/memory_cpu.json

On CUDA the allocator tells. On a CPU the resident set is sampled every millisecond while a step
runs, in a process of its own for each contestant, with an allocator that returns every block of
64 KiB or more to the system.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.utils._pytree import tree_map

from benchmarks.machine import describe
from benchmarks.steps import inputs_of, model_of

_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def allocated(step: Callable[[], object]) -> int:
    """Most bytes that a step takes of the allocator of CUDA, above what rests."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


class Sampler(threading.Thread):
    """Keeps the largest resident set that it sees."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = resident()
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.001):
            self.peak = max(self.peak, resident())

    def finish(self) -> int:
        self._done.set()
        self.join()
        return self.peak


@torch.no_grad()
def measure(backend: str, side: int) -> int:
    """Bytes of one warm step above the resting memory; in half precision on CUDA."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = model_of((320, 640), (1, 2)).to(device, dtype)
    inputs = tree_map(
        lambda value: value.to(device, dtype) if isinstance(value, torch.Tensor) else value,
        inputs_of(side, 1),
    )
    run = torch.compile(model, backend=backend, fullgraph=True)
    for step in (900.0, 800.0):
        run(timestep=torch.tensor(step, device=device), **inputs)
    if device.type == "cuda":
        return allocated(lambda: run(timestep=torch.tensor(700.0, device=device), **inputs))
    before = resident()
    sampler = Sampler()
    sampler.start()
    run(timestep=torch.tensor(700.0), **inputs)
    return sampler.finish() - before


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=64, help="latents, one side")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", metavar="BACKEND", help="internal")
    return parser


def main() -> None:
    given = arguments().parse_args()
    if given.one:
        print(measure(given.one, given.side))
        return
    found = {}
    for backend in ("inductor", "toma"):
        command = [sys.executable, "-m", "benchmarks.memory", "--one", backend]
        result = subprocess.run(
            [*command, "--side", str(given.side)],
            env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
            check=True,
            capture_output=True,
            text=True,
        )
        found[backend] = int(result.stdout.strip().splitlines()[-1])
    table = Table("contestant", "peak MiB", title=f"one step, {given.side}×{given.side} latents")
    for backend, peak in found.items():
        table.add_row("ratio 0.5" if backend == "toma" else "plain", f"{peak / 2**20:.0f}")
    Console().print(table)
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps({**describe(), "peak_bytes": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
