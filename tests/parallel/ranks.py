"""Ranks as processes of one machine: one group for all cases of a file, and a limit to its time."""

from __future__ import annotations

import os
import socket
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing

SECONDS = 500
"""For each rank; after so long a group hangs: one waits for what no other sends."""

Results = dict[str, Any]
Work = Callable[[int, int], Results]
"""What a rank does, given its number and that of all; what it found."""


def run_ranks(work: Work, count: int, folder: Path) -> list[Results]:
    """What each rank of a gloo group found.

    Args:
        work: of each rank; importable.
        count: of ranks.
        folder: where they leave what they found.

    Raises:
        TimeoutError: they hang; all are stopped.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.start_processes(
        _rank, (work, count, port, folder), nprocs=count, join=False, start_method="spawn"
    )
    end = time.monotonic() + SECONDS * count
    while not context.join(timeout=max(end - time.monotonic(), 0)):
        if time.monotonic() >= end:
            for process in context.processes:
                process.kill()
            raise TimeoutError(f"{count} ranks did not finish in {SECONDS * count} s")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(count)]


def _rank(rank: int, work: Work, count: int, port: int, folder: Path) -> None:
    warnings.simplefilter("ignore")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    # Diffusers asks for the number of devices, and divides by it: a CPU has none.
    torch.accelerator.device_count = lambda: 1
    dist.init_process_group("gloo", rank=rank, world_size=count)
    try:
        with torch.no_grad():
            torch.save(work(rank, count), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()
