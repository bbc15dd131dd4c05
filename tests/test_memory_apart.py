"""No picture remembers another one; without the guard each of these would."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import toma_fx
from tests.diffusers.door import picture
from tests.diffusers.test_resting import Told
from toma_fx import guard
from toma_fx.dynamo import private_copy

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.no_grad():
        yield


OPTIONS: dict[str, Any] = {
    **{"method": "refresh", "regions": "all", "min_tokens": 1},
    **{"inner_backend": "eager"},
}


@dataclass(frozen=True)
class Call:
    """Of the picture `who`; latents move a little from call to call, as a sampler's do."""

    who: int
    time: float
    number: int = 0
    prompt: int = 0
    seed: int = 0

    def arguments(self) -> tuple[Tensor, Tensor, Tensor]:
        noise, moves = picture(seed=self.seed), picture(seed=100 + self.seed)
        words = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(self.prompt))
        return noise + 0.2 * self.number * moves, torch.tensor(self.time), words


def calls(who: int, times: list[float], **more: int) -> list[Call]:
    return [Call(who, time, number, **more) for number, time in enumerate(times)]


def turns(*pictures: list[Call]) -> list[Call]:
    return [call for group in zip(*pictures, strict=True) for call in group]


FALL, HEUN = [9.0, 8.0, 7.0, 6.0], [9.0, 8.0, 8.0, 7.0, 7.0, 6.0]
HISTORIES = {
    "interleaved": turns(calls(0, FALL), calls(1, FALL, prompt=1, seed=1)),
    "aborted": [*calls(0, FALL[:2]), *calls(1, FALL, seed=1)],
    "heun": [*calls(0, HEUN), *calls(1, HEUN, seed=1)],
    "inversion": [*calls(0, [1.0, 2.0, 3.0, 4.0]), *calls(1, [3.5, 2.5, 1.5], seed=1)],
    "another strength": [
        *calls(0, FALL),
        *calls(1, [7.5, 6.5, 5.5], seed=1),
        *calls(2, [4.5, 3.5], seed=2, prompt=1),
    ],
    "another prompt": [*calls(0, FALL), *calls(1, FALL, prompt=1), *calls(2, [5.0], prompt=2)],
}


def never_begins(memory: Tensor, slots: Tensor, tally: Tensor, *more: Any) -> tuple[Any, ...]:
    """`guard.decide` without its judgement: one slot, and all goes on."""
    phase, step, _, slot, *after = guard.decide(memory, slots, tally, *more)
    return phase, step, tally[guard.FRESH] != guard.WARM, torch.zeros_like(slot), *after


def _call(model: Told, *args: Tensor) -> Tensor:
    result: Tensor = model(*args)
    return result


class Run:
    """A compiled model; a history begins where nothing is remembered."""

    def __init__(self) -> None:
        self.model = Told()
        own = private_copy(_call, "memory_apart")
        self._run = torch.compile(partial(own, self.model), backend="toma", options=OPTIONS)
        self(HISTORIES["aborted"][:1])  # compiles

    def __call__(self, history: list[Call]) -> list[Tensor]:
        toma_fx.reset(self.model)
        return [self._run(*call.arguments()) for call in history]


@pytest.fixture(scope="module")
def runs() -> tuple[Run, Run]:
    """With the guard, and without."""
    with torch.no_grad():
        guarded = Run()
        with mock.patch("toma_fx.passes.rewrite.clock.decide", never_begins):
            return guarded, Run()


@pytest.mark.parametrize("name", HISTORIES)
def test_a_picture_is_what_it_is_alone(name: str, runs: tuple[Run, Run]) -> None:
    history, (guarded, unguarded) = HISTORIES[name], runs
    alone: dict[Call, Tensor] = {}
    for who in {call.who for call in history}:
        mine = [call for call in history if call.who == who]
        alone.update(zip(mine, guarded(mine), strict=True))
    together = dict(zip(history, guarded(history), strict=True))
    assert all(torch.equal(together[call], alone[call]) for call in history)
    spoilt = dict(zip(history, unguarded(history), strict=True))
    assert any(not torch.equal(spoilt[call], alone[call]) for call in history if call.who)


def test_second_stages_remember_the_first(runs: tuple[Run, Run]) -> None:
    """Heun repeats a timestep: that goes on with the picture, and is no new one."""
    history = calls(0, HEUN)
    found, cold = runs[0](history), [runs[0]([call])[0] for call in history]
    same = [torch.equal(a, b) for a, b in zip(found, cold, strict=True)]
    assert same == [True] + [False] * 5
