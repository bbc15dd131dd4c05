"""A contestant in a process of its own, and what that process does."""

from __future__ import annotations

import multiprocessing
import os
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.race.grid import Case
from benchmarks.race.heat import Ready, failed, prepare, record, step_times
from benchmarks.race.models import arguments_of, model_of
from benchmarks.race.parts import BACKEND, GAPS, parts_of
from benchmarks.race.start import SkipError, setting_of
from benchmarks.race.turns import FileLock, device_in_turns

_GRACE = 5.0  # seconds that a process has to end by itself
_PATIENCE = 300.0  # seconds that an answer may take


class MemberError(Exception):
    """A member cannot race; its record says why."""

    def __init__(self, found: dict[str, Any]) -> None:
        super().__init__(found.get("reason"))
        self.record = {"status": "failed", **found}


@dataclass(frozen=True)
class Post:
    """What a process needs to know: which case, where, and which backend compiles it."""

    case: Case
    device: str
    backend: str
    threads: int


class Member:
    """A contestant in a process; it starts to compile at once.

    Args:
        post: what it runs.
        lock: a file; whoever locks it has the device for itself, until all are ready.
        worker: the class whose methods it asks for; made in the process from `post`.
    """

    def __init__(self, post: Post, lock: Path, worker: type[Any]) -> None:
        # From a server that has imported everything and started nothing: neither a device nor
        # threads may be inherited, and imports take seconds.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self._connection, theirs = context.Pipe()
        arguments = (post, theirs, lock, worker)
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()  # so that the end of the process is the end of the connection

    def ready(self, until: float) -> None:
        """Wait until it has compiled.

        Raises:
            MemberError: it cannot take part, has died, or the time is over.
        """
        if not wait([self._connection], max(0.0, min(until - time.time(), 1e6))):
            raise MemberError({"status": "stopped", "reason": "the time was over"})
        self._answer()

    def ask(self, what: str, *arguments: Any) -> Any:
        """A method of the worker by name.

        Raises:
            MemberError: it failed there, or has died.
        """
        try:
            self._connection.send((what, arguments))
        except OSError as error:
            raise self._dead() from error
        if not wait([self._connection], _PATIENCE):
            raise MemberError({"reason": f"no answer to {what!r} for {_PATIENCE:.0f} s"})
        return self._answer()

    def _answer(self) -> Any:
        try:
            kind, value = self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._dead() from error
        if kind != "done":
            raise MemberError(value)
        return value

    def _dead(self) -> MemberError:
        self.process.join(_GRACE)
        code = self.process.exitcode
        return MemberError({"reason": f"the process died with exit code {code}"})

    def leave(self) -> None:
        """End the process, at once if it is compiling."""
        self._connection.close()
        self.process.terminate()
        self.process.join(_GRACE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


class Worker:
    """What a member does when it is asked."""

    def __init__(self, post: Post) -> None:
        from benchmarks.race.group import settle_compilers

        self.device = torch.device(post.device)
        contestant = post.case.contestant
        named = contestant.how in ("compile", "toma") and "mode" not in contestant.options
        self._tells_parts = named and post.backend == BACKEND
        settle_compilers(self.device)
        case = post.case
        module = model_of(case.model, self.device)
        arguments = arguments_of(case.model, module, case.height, case.width)
        setting = setting_of(module, arguments, self.device, post.backend)
        self.ready: Ready = prepare(case, setting, cold=False)

    def result(self) -> torch.Tensor:
        return self.ready.result().cpu()

    def compare(self, expected: torch.Tensor) -> None:
        self.ready.compare(expected.to(self.device))

    def time(self, numbers: range) -> list[float]:
        return step_times(self.ready.entry.step, numbers, self.device)

    def record(self, seconds: list[float], plain: list[float], flops: int | None) -> dict[str, Any]:
        found = record(self.ready, seconds, plain, flops)
        if self._tells_parts:
            found["parts"] = self._parts(found["seconds"])
        return found

    def _parts(self, timed: float) -> dict[str, float]:
        """Where the time of a step goes, averaged over one cycle."""
        found = parts_of({"mine": self.ready.entry}, 1, self.device)["mine"]
        if self.device.type == "cuda":
            found[GAPS] = max(0.0, timed - sum(found.values()))
        return found


def _serve(post: Post, connection: Connection, lock: Path, kind: type[Any]) -> None:
    """The main function of a member's process."""
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = str(post.threads)
    torch._inductor.config.compile_threads = post.threads
    attention = sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
    with torch.no_grad(), attention:
        try:
            with device_in_turns(FileLock(lock), torch.device(post.device)):
                worker = kind(post)
        except SkipError as reason:
            connection.send(("failed", {"status": "skipped", "reason": str(reason)}))
            return
        except Exception as error:
            connection.send(("failed", failed(error)))
            return
        connection.send(("done", None))
        while True:
            try:
                what, arguments = connection.recv()
            except (EOFError, OSError):
                return
            try:
                connection.send(("done", getattr(worker, what)(*arguments)))
            except Exception as error:
                connection.send(("failed", failed(error)))
