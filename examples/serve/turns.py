"""Those who share a model take turns: one runs at a time, a step each, first come first served.

A device runs one kernel after the other anyway. In turns a short picture need not wait for a long
one, and nothing of a model, nor of what is compiled for it, is ever used by two threads at once.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """Whose turn it is. Threads that wait cost nothing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[threading.Event] = deque()
        self._taken = False

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a turn, and keep it until it is passed on or the context ends."""
        self._take()
        try:
            yield
        finally:
            self._leave()

    def pass_on(self) -> None:
        """Let all who wait go first, each until it passes on or ends; nothing if nobody does."""
        with self._lock:
            if not self._waiting:
                return
            mine = self._join()
            self._waiting.popleft().set()
        mine.wait()

    def _take(self) -> None:
        with self._lock:
            if not self._taken:
                self._taken = True
                return
            mine = self._join()
        mine.wait()

    def _leave(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()  # it is taken all the same, by another
            else:
                self._taken = False

    def _join(self) -> threading.Event:
        self._waiting.append(threading.Event())
        return self._waiting[-1]
