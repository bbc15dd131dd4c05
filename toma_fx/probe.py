"""What Inductor asks the C++ compiler once a process, asked while the passes run.

Which vector instructions this processor has, Inductor finds out by compiling and loading a small
program for each kind: seconds, in which Python waits, in the middle of the first compile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from threading import Thread
from typing import Any

import torch


@contextmanager
def probing(values: Iterable[Any]) -> Iterator[None]:
    """Ask beside what goes on in the block, once a process, if code for a CPU will be wanted.

    Args:
        values: inputs of a graph.
    """
    devices = {value.device.type for value in values if isinstance(value, torch.Tensor)}
    thread = _begun() if devices == {"cpu"} else None
    try:
        yield
    finally:
        if thread is not None:
            thread.join()  # two that ask at once would change the compiler's flags at once


@cache
def _begun() -> Thread:
    thread = Thread(target=_ask, name="toma_fx probe", daemon=True)
    thread.start()
    return thread


def _ask() -> None:
    with suppress(Exception):  # Inductor asks again, and says what is wrong
        from torch._inductor.cpu_vec_isa import pick_vec_isa

        pick_vec_isa()
