"""Contestants in processes of their own: they compile at once, and are timed in turns.

Compiling takes a minute or two a contestant on one core, timing it a few seconds. On a machine
with many cores a crew is ready after the time of one. Whoever breaks the device breaks it for
itself alone.

While a crew gets ready its members take turns on the device too (see `turns`). Contestants that
tune for minutes come one at a time, when the others are ready and idle.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.race.grid import Case
from benchmarks.race.heat import turns
from benchmarks.race.member import Member, MemberError, Post, Worker


def race_apart(
    heat: list[Case],
    plain: Case,
    post: Callable[[Case], Post],
    *,
    cycles: int,
    flops: int | None,
    until: float,
    worker: type[Any] = Worker,
) -> dict[str, dict[str, Any]]:
    """Records of a heat by the keys of its cases, as `heat.race` makes them.

    Args:
        heat: who races; `plain` beside them, whether it is among them or not.
        plain: plain `torch.compile`.
        post: of a case.
        cycles: of ten timed steps each.
        flops: of a plain step.
        until: by `time.time()`: who is not ready then is stopped.
        worker: what the processes run.
    """
    records: dict[str, dict[str, Any]] = {}
    device = torch.device(post(plain).device)
    with _crew(worker) as (enlist, crew):

        def get_ready(cases: list[Case]) -> None:
            for case in cases:
                enlist(case.key, post(case))
            for case in cases:
                _attempt(records, crew, case.key, Member.ready, until)

        quick = [case for case in heat if not case.contestant.slow_to_compile and case != plain]
        get_ready([plain, *quick])
        for case in heat:
            if case.contestant.slow_to_compile:
                get_ready([case])
        if plain.key in crew:
            _compare_and_time(records, crew, plain.key, cycles, flops, device)
    lost = {**records.get(plain.key, {}), "reason": "plain torch.compile did not run"}
    return {case.key: {**case.labels, **records.get(case.key, lost)} for case in heat}


def _compare_and_time(
    records: dict[str, dict[str, Any]],
    crew: dict[str, Member],
    plain: str,
    cycles: int,
    flops: int | None,
    device: torch.device,
) -> None:
    expected = crew[plain].ask("result")
    for key in [key for key in crew if key != plain]:
        _attempt(records, crew, key, Member.ask, "compare", expected)
    seconds: dict[str, list[float]] = {key: [] for key in crew}
    for turn in turns(cycles, device):
        for key in list(crew):
            found = _attempt(records, crew, key, Member.ask, "time", turn)
            seconds[key] += found or []
    for key in list(crew):
        arguments = (seconds[key], seconds[plain], flops)
        found = _attempt(records, crew, key, Member.ask, "record", *arguments)
        records.setdefault(key, found)


@contextmanager
def _crew(worker: type[Any]) -> Iterator[tuple[Callable[[str, Post], None], dict[str, Member]]]:
    """A function that adds a member, and the members; all leave at the end."""
    crew: dict[str, Member] = {}
    with tempfile.TemporaryDirectory() as folder:
        lock = Path(folder) / "device"

        def enlist(key: str, post: Post) -> None:
            crew[key] = Member(post, lock, worker)

        try:
            yield enlist, crew
        finally:
            for member in crew.values():
                member.leave()


def _attempt(
    records: dict[str, dict[str, Any]],
    crew: dict[str, Member],
    key: str,
    act: Callable[..., Any],
    *arguments: Any,
) -> Any:
    """What a member answers; one that fails leaves, and what it says is its record."""
    try:
        return act(crew[key], *arguments)
    except MemberError as error:
        records[key] = error.record
        crew.pop(key).leave()
        return None
