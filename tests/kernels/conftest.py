"""Workers in which Triton runs: one under its interpreter, one that compiles for real.

Triton reads `TRITON_INTERPRET` once, when it is imported, and from then on every kernel of the
process is interpreted, Inductor's too. So checks of kernels run in processes of their own.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

Worker = Callable[..., Any]


def _worker(interpret: str) -> Iterator[Worker]:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", interpret)
        patch.setenv("OMP_NUM_THREADS", "1")
        pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        pool.submit(os.getpid).result()  # the process starts now and keeps these variables
    with pool:
        yield lambda check, *arguments: pool.submit(check, *arguments).result()


@pytest.fixture(scope="session")
def interpreter() -> Iterator[Worker]:
    """Run a function of a test module where Triton interprets kernels on CPU tensors."""
    yield from _worker("1")


@pytest.fixture(scope="session")
def compiler() -> Iterator[Worker]:
    """Run a function of a test module where Triton compiles kernels."""
    yield from _worker("0")
