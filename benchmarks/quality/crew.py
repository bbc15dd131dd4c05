"""Processes that share a run: which of them this is.

    accelerate launch   all begin together, and wait for one another: `PartialState`
    Ray                 tasks that begin when they can, and wait for nobody: `apart`

Both paint by the same rule (`shard`), into one folder. Nothing else differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

from accelerate import PartialState

T = TypeVar("T")


class Member(Protocol):
    """One of several processes, as accelerate names its properties."""

    @property
    def process_index(self) -> int: ...
    @property
    def num_processes(self) -> int: ...
    @property
    def is_main_process(self) -> bool: ...
    def wait_for_everyone(self) -> None: ...


@dataclass(frozen=True)
class Apart:
    """A process that others need not wait for. The first one writes what is noted."""

    process_index: int
    num_processes: int

    @property
    def is_main_process(self) -> bool:
        return self.process_index == 0

    def wait_for_everyone(self) -> None:
        """Nobody waits."""


_apart: list[Apart] = []


def here() -> Member:
    """This process."""
    found: Member = _apart[-1] if _apart else PartialState()
    return found


@contextmanager
def apart(index: int, count: int) -> Iterator[None]:
    """Be one of so many that do not wait for one another."""
    _apart.append(Apart(index, count))
    try:
        yield
    finally:
        _apart.pop()


def shard(batches: Sequence[T], member: Member) -> Sequence[T]:
    """The batches of one process: every so-many-th, whatever is painted already.

    To share what is missing instead would be more even after an interruption, but a process that
    looks later sees less of it, and two would paint one batch, or none would.
    """
    return batches[member.process_index :: member.num_processes]
