"""The guard, step by step, against the same rules in plain Python."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from toma_fx import guard
from toma_fx.operations import REUSE, SELECT, WEIGH

NAN = float("nan")
REASONS = ("cold", "reset", "grid", "conditioning", "new_generation", "schedule")


@dataclass
class Rules:
    """The guard as its design tells it, on plain numbers.

    A part that is None is not guarded; latents without an element are not seen by the graph.
    """

    select_every: int
    weigh_every: int
    fresh: str | None = "cold"
    step: int = 0
    last: tuple[Any, ...] = ()
    # How often in a row a generation seemed to begin; after two, every fall begins one.
    turns: int = 0
    steps: int = 0
    selections: int = 0
    weighings: int = 0
    reuses: int = 0
    misses: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))

    def call(
        self,
        timesteps: Sequence[float],
        latents: Sequence[float],
        conditioning: Sequence[float] | None = None,
        grid: Sequence[float] | None = None,
    ) -> int:
        """The phase of a call; items may stand at timesteps of their own."""
        reason = self._reason(timesteps, latents, conditioning, grid)
        advanced = bool(self.last) and fell(timesteps, self.last[0])
        self.turns = self._turns(timesteps, latents, conditioning)
        self.step = 0 if reason else self.step + advanced
        self.steps += bool(reason) or advanced
        self.fresh = None
        self.last = (timesteps, latents, conditioning, grid)
        if not reason and advanced and self.step % self.select_every == 0:
            reason = "schedule"
        if reason:
            self.misses[reason] += 1
            self.selections += 1
            self.weighings += 1
            return SELECT
        if advanced and self.step % self.weigh_every == 0:
            self.weighings += 1
            return WEIGH
        self.reuses += 1
        return REUSE

    def _reason(self, timesteps: Any, latents: Any, conditioning: Any, grid: Any) -> str | None:
        if self.fresh:
            return self.fresh
        last, last_latents, last_conditioning, last_grid = self.last
        if not equal(grid, last_grid):
            return "grid"
        if not equal(conditioning, last_conditioning):
            return "conditioning"
        one_step = equal(timesteps, last) and len(latents) > 0 and equal(latents, last_latents)
        goes_on = fell(timesteps, last) and self.turns < 2
        return None if goes_on or one_step else "new_generation"

    def _turns(self, timesteps: Any, latents: Any, conditioning: Any) -> int:
        if self.fresh or fell(timesteps, self.last[0]):
            return 0
        if not equal(timesteps, self.last[0]):
            return self.turns + 1
        if latents and equal(latents, self.last[1]):
            return self.turns
        return self.turns + (0 if conditioning is None else 2)


def fell(new: Sequence[float], old: Sequence[float]) -> bool:
    """Every item's timestep: one that stayed or rose belongs to another picture."""
    return all(a < b for a, b in zip(new, old, strict=True))


def equal(new: Sequence[float] | None, old: Sequence[float] | None) -> bool:
    """By value, so that a NaN differs from itself."""
    pairs: Iterable[tuple[float, float]] = zip(new or (), old or (), strict=True)
    return all(a == b for a, b in pairs)


class Cache:
    """`decide`, with the state that it returns kept for the next call."""

    def __init__(self, select_every: int, weigh_every: int) -> None:
        self.every = select_every, weigh_every
        self.memory: Tensor | None = None
        self.tally = torch.zeros(guard.TALLY_SIZE, dtype=torch.int64)
        self.tally[guard.FRESH] = guard.COLD

    def call(
        self,
        timestep: Tensor,
        latents: Sequence[float],
        conditioning: Sequence[float] | None = None,
        grid: Sequence[float] | None = None,
    ) -> int:
        parts = (latents, conditioning, grid)
        seen = [None if part is None else torch.tensor(part) for part in parts]
        if self.memory is None:
            self.memory = torch.zeros(
                timestep.numel() + sum(len(part) for part in parts if part is not None)
            )
        before = self.memory.clone(), self.tally.clone()
        phase, memory, tally = guard.decide(self.memory, self.tally, timestep, *seen, *self.every)
        assert torch.equal(before[0].nan_to_num(7.5), self.memory.nan_to_num(7.5))
        assert torch.equal(before[1], self.tally)  # state is an argument and a result
        assert (phase.dtype, phase.shape) == (torch.int32, ())
        assert (memory.dtype, memory.shape) == (self.memory.dtype, self.memory.shape)
        assert (tally.dtype, tally.shape) == (self.tally.dtype, self.tally.shape)
        self.memory, self.tally = memory, tally
        return int(phase)

    def statistics(self) -> dict[str, int]:
        names = (
            "fresh",
            "step",
            "turns",
            "steps",
            "selections",
            "weighings",
            "reuses",
            *guard.MISSES,
        )
        return dict(zip(names, self.tally.tolist(), strict=True))


def assert_alike(cache: Cache, rules: Rules, calls: int) -> None:
    """State and statistics, and that the statistics add up."""
    counts = cache.statistics()
    assert counts["step"] == rules.step
    assert counts["turns"] == rules.turns
    assert counts["fresh"] == guard.WARM
    for name in ("steps", "selections", "weighings", "reuses"):
        assert counts[name] == getattr(rules, name), name
    assert {reason: counts[reason] for reason in REASONS} == rules.misses
    assert sum(counts[reason] for reason in REASONS) == counts["selections"]
    assert counts["weighings"] >= counts["selections"]
    assert counts["reuses"] + counts["weighings"] == calls
    assert counts["selections"] <= counts["steps"] <= calls


# Few values, so that repetitions, rises and falls are all common.
TIMES = st.one_of(
    st.integers(0, 6).map(float), st.sampled_from((0.5, -0.0, 1000.0, math.inf, -math.inf, NAN))
)
PARTS = st.lists(st.sampled_from((0.0, 1.0, 2.0)), min_size=2, max_size=2)
BROKEN = st.just([1.0, NAN])
EVENTS = ("fall",) * 4 + ("repeat", "any", "one item", "part", "reset")


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Any], int, int]:
    """Calls `(timesteps, latents, conditioning, grid)` and None for a reset; the two periods.

    Many calls go on where the one before was: unrelated calls would rarely reuse anything.
    """
    guarded = draw(st.booleans()), draw(st.booleans())
    blind = draw(st.integers(0, 4)) == 0
    steps: list[Any] = []
    items = draw(st.sampled_from((1, 1, 2, 3)))
    call: list[Any] = [[6.0] * items, [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    for _ in range(draw(st.integers(1, 25))):
        event = draw(st.sampled_from(EVENTS))
        if event == "reset":
            steps.append(None)
            continue
        call = list(call)
        if event == "fall":
            call[0] = [time - draw(st.sampled_from((0.25, 1.0))) for time in call[0]]
            call[1] = draw(PARTS)
        elif event == "any":
            call[0] = [draw(TIMES)] * items
        elif event == "one item":
            call[0] = [draw(TIMES), *call[0][1:]][::-1]
        elif event == "part":
            call[draw(st.integers(1, 3))] = draw(st.one_of(PARTS, PARTS, PARTS, BROKEN))
        latents, conditioning, grid = call[1:]
        seen = [[] if blind else latents, conditioning if guarded[0] else None]
        steps.append((call[0], *seen, grid if guarded[1] else None))
    return steps, draw(st.integers(1, 5)), draw(st.integers(1, 5))


@settings(deadline=None, max_examples=400, derandomize=True, database=None)
@given(histories(), st.sampled_from((torch.float32, torch.float64)))
def test_decide_follows_the_rules(history: tuple[list[Any], int, int], dtype: torch.dtype) -> None:
    steps, select_every, weigh_every = history
    cache, rules = Cache(select_every, weigh_every), Rules(select_every, weigh_every)
    calls = 0
    for step in steps:
        if step is None:
            cache.tally[guard.FRESH] = guard.RESET
            rules.fresh = "reset"
            continue
        timesteps = torch.tensor(step[0], dtype=dtype)
        calls += 1
        given_ = timesteps.squeeze(0) if len(step[0]) == 1 and calls % 2 else timesteps
        assert cache.call(given_, *step[1:]) == rules.call(*step)
        assert_alike(cache, rules, calls)


def phases(times: Sequence[float], latents: Sequence[float], every: tuple[int, int]) -> list[int]:
    cache = Cache(*every)
    return [cache.call(torch.tensor(t), [x]) for t, x in zip(times, latents, strict=True)]


def test_a_generation_follows_its_schedule() -> None:
    expected = [SELECT, REUSE, WEIGH, REUSE] * 2 + [SELECT, REUSE]
    assert phases(range(10, 0, -1), range(10), (4, 2)) == expected


def test_periods_that_do_not_divide_each_other() -> None:
    expected = [SELECT, REUSE, REUSE, WEIGH, SELECT, REUSE, WEIGH, REUSE, SELECT, WEIGH]
    assert phases(range(10, 0, -1), range(10), (4, 3)) == expected


def test_sequential_guidance_is_one_step() -> None:
    """Both halves of a step see the same latents; only the first one is on the schedule."""
    times = [9, 9, 8, 8, 7, 7, 6, 6]
    expected = [SELECT, REUSE, WEIGH, REUSE, SELECT, REUSE, WEIGH, REUSE]
    assert phases(times, times, (2, 1)) == expected


def test_one_step_models_select_for_each_picture() -> None:
    assert phases([999] * 4, [0, 1, 1, 2], (10, 5)) == [SELECT, SELECT, REUSE, SELECT]


def test_heun_never_reuses_for_other_latents_of_one_timestep() -> None:
    times, latents = [9, 8, 8, 7, 7, 6], [0, 1, 2, 3, 4, 5]
    assert phases(times, latents, (10, 10)) == [SELECT, REUSE, SELECT, REUSE, SELECT, REUSE]


def test_inversion_selects_at_every_rise() -> None:
    assert phases(range(6), range(6), (10, 5)) == [SELECT] * 6


def test_a_generation_after_one_that_rose_selects() -> None:
    times = [0.0, 0.25, 0.5, 0.75] * 2
    assert phases(times, range(8), (10, 5))[4] == SELECT


def test_a_picture_after_an_inversion_reuses_from_its_second_step_on() -> None:
    times = [1, 2, 3, 9, 8, 7, 6]
    expected = [SELECT] * 5 + [REUSE, REUSE]
    assert phases(times, range(7), (10, 5)) == expected


def test_an_item_whose_timestep_rose_selects() -> None:
    """Batches that are refilled: the second item becomes another picture."""
    cache = Cache(10, 5)
    cache.call(torch.tensor([9.0, 5.0]), [0.0, 0.0])
    assert cache.call(torch.tensor([8.0, 9.0]), [1.0, 1.0]) == SELECT


def test_timesteps_that_float32_cannot_tell_apart_select() -> None:
    """Rounding may cost a selection, never a wrong reuse."""
    cache = Cache(10, 5)
    close = torch.tensor([0.5, 0.5 - 2**-40], dtype=torch.float64)
    assert cache.call(close[0], [0.0]) == SELECT
    assert cache.call(close[1], [1.0]) == SELECT


def test_whole_number_timesteps() -> None:
    cache = Cache(4, 2)
    assert [cache.call(torch.tensor(t), [0.0]) for t in (999, 998, 997)] == [SELECT, REUSE, WEIGH]


@pytest.mark.parametrize("size", [1, 5, 63, 64, 65, 127, 128, 129, 1000, 4 * 128 * 128])
def test_a_fingerprint_is_short_and_notices_other_noise(size: int) -> None:
    noise = torch.randn(size, generator=torch.Generator().manual_seed(size))
    print_ = guard.fingerprint([noise])
    assert 0 < print_.numel() <= guard.SAMPLES
    assert print_.dtype == torch.float32
    assert torch.equal(print_, guard.fingerprint([noise.clone()]))
    assert not (print_ == guard.fingerprint([noise + 1e-3])).any()


@pytest.mark.parametrize("size", [64, 100, 127, 128, 191, 6400])
def test_a_fingerprint_is_spread_over_the_whole_tensor(size: int) -> None:
    places = guard.fingerprint([torch.arange(size)])
    gaps = torch.diff(torch.cat((places, torch.tensor([float(size)]))))
    assert gaps.max() <= 2 * math.ceil(size / guard.SAMPLES)


def test_fingerprints_of_several_tensors_are_all_there() -> None:
    first, second = torch.zeros(2, 300), torch.zeros(7, dtype=torch.int64)
    plain = guard.fingerprint([first, second])
    assert not torch.equal(plain, guard.fingerprint([first, second + 1]))
    assert not torch.equal(plain, guard.fingerprint([first + 1, second]))


def test_half_precision_is_compared_exactly() -> None:
    noise = torch.randn(256, generator=torch.Generator().manual_seed(0)).bfloat16()
    other = (noise.view(torch.int16) + 1).view(torch.bfloat16)  # one unit in the last place
    assert not (guard.fingerprint([noise]) == guard.fingerprint([other])).any()


def test_a_transposed_tensor_is_read_by_its_logical_elements() -> None:
    noise = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
    columns = noise.t().contiguous().t()
    assert torch.equal(guard.fingerprint([noise]), guard.fingerprint([columns]))
