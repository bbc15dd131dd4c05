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
class Generation:
    """What a slot remembers: a generation, of one conditioning."""

    # Why it has nothing to go on with, or None.
    state: str | None = "cold"
    step: int = 0
    # How often in a row a generation seemed to begin; after two, every fall begins one.
    turns: int = 0
    # Falls since it began or since its last second stage.
    beat: int = 0
    last: tuple[Any, ...] = ()
    # What was made for it: a test's own, made anew where the phase says so.
    plan: tuple[Any, Any] = (None, None)


@dataclass
class Rules:
    """The guard as its design tells it, on plain numbers.

    A part that is None is not guarded; latents without an element are not seen by the graph.
    """

    select_every: int
    weigh_every: int
    slots: int = 1
    take_turns: bool = False
    fresh: str | None = "cold"
    steps: int = 0
    selections: int = 0
    weighings: int = 0
    reuses: int = 0
    misses: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    # The one used longest ago comes first.
    kept: list[Generation] = field(default_factory=list)

    def call(
        self,
        timesteps: Sequence[float],
        latents: Sequence[float],
        conditioning: Sequence[float] | None = None,
        grid: Sequence[float] | None = None,
    ) -> int:
        """The phase of a call; items may stand at timesteps of their own."""
        if self.fresh:
            self.kept = [Generation(self.fresh) for _ in range(self.slots)]
            self.fresh = None
        now = (timesteps, latents, conditioning, grid)
        latest, mine = self.kept[-1], self._slot(conditioning)
        echo = not latest.state and latents and all(map(equal, latest.last[::3], now[::3]))
        echo = echo and equal(latest.last[1], latents)
        reason, moved = self._move(mine, *now)
        self.kept.sort(key=lambda generation: generation is mine)  # the latest last
        if (reason or moved) and not echo:
            self.steps += 1
        return self._phase(mine, reason, moved)

    def _slot(self, conditioning: Sequence[float] | None) -> Generation:
        for generation in self.kept:
            if not generation.state and equal(conditioning, generation.last[2]):
                return generation
        return self.kept[0]

    def _move(
        self, mine: Generation, timesteps: Any, latents: Any, conditioning: Any, grid: Any
    ) -> tuple[str | None, bool]:
        """Why a generation begins, and whether the call is a step."""
        known = not mine.state and equal(conditioning, mine.last[2])
        then = mine.last if known else ((), (), None, None)
        down = known and fell(timesteps, then[0])
        stayed = known and equal(timesteps, then[0])
        again = stayed and len(latents) > 0 and equal(latents, then[1])
        second = stayed and not again and mine.beat == 1 and near(latents, then[1])
        reason = mine.state
        if not reason and not known:
            reason = "conditioning"
        elif not reason and not equal(grid, then[3]):
            reason = "grid"
        elif not reason and not (down and mine.turns < 2) and not again and not second:
            reason = "new_generation"
        if down or not known:
            mine.turns = 0
        elif not again and not second:
            mine.turns += 2 * self.take_turns if stayed else 1
        mine.beat = 0 if reason or second else mine.beat + down
        mine.step = 0 if reason else mine.step + (down or second)
        mine.state, mine.last = None, (timesteps, latents, conditioning, grid)
        return reason, down or second

    def _phase(self, mine: Generation, reason: str | None, moved: bool) -> int:
        if not reason and moved and mine.step % self.select_every == 0:
            reason = "schedule"
        if reason:
            self.misses[reason] += 1
            self.selections += 1
            self.weighings += 1
            return SELECT
        if moved and mine.step % self.weigh_every == 0:
            self.weighings += 1
            return WEIGH
        self.reuses += 1
        return REUSE


def fell(new: Sequence[float], old: Sequence[float]) -> bool:
    """Every item's timestep: one that stayed or rose belongs to another picture."""
    return all(a < b for a, b in zip(new, old, strict=True))


def equal(new: Sequence[float] | None, old: Sequence[float] | None) -> bool:
    """By value, so that a NaN differs from itself."""
    pairs: Iterable[tuple[float, float]] = zip(new or (), old or (), strict=True)
    return all(a == b for a, b in pairs)


def near(new: Sequence[float], old: Sequence[float]) -> bool:
    """Nearer than half of what unrelated latents are apart."""
    apart = sum((a - b) ** 2 for a, b in zip(new, old, strict=True))
    return 2 * apart < sum(a * a + b * b for a, b in zip(new, old, strict=True))


class Cache:
    """`decide`, with the state that it returns kept for the next call."""

    def __init__(
        self,
        select_every: int,
        weigh_every: int,
        slots: int = 1,
        take_turns: bool = False,
        rises: bool = False,
    ) -> None:
        self.schedule = select_every, weigh_every, take_turns, False, rises
        self.memory: Tensor | None = None
        self.slots = torch.zeros(slots, guard.SLOT_SIZE, dtype=torch.int64)
        self.tally = guard.cold_tally(torch.device("cpu"))
        self.slot = 0
        self.step = 0

    def call(
        self,
        timestep: Tensor,
        latents: Sequence[float] = (),
        conditioning: Sequence[float] | None = None,
        grid: Sequence[float] | None = None,
        drawn: Tensor | None = None,
    ) -> int:
        noise = torch.tensor(latents).float() if latents else drawn
        drawn = noise[None] if latents and noise is not None else drawn
        seen = [None if part is None else torch.tensor(part) for part in (conditioning, grid)]
        parts = (timestep, drawn, noise, *seen)
        if self.memory is None:
            size = sum(part.numel() for part in parts if part is not None)
            self.memory = torch.zeros(len(self.slots), size)
        state = (self.memory, self.slots, self.tally)
        before = [part.clone() for part in state]
        phase, step, fresh, slot, *after = guard.decide(*state, *parts, *self.schedule)
        for old, given_, new in zip(before, state, after, strict=True):
            assert torch.equal(old.nan_to_num(7.5), given_.nan_to_num(7.5))  # not changed in place
            assert (new.dtype, new.shape) == (old.dtype, old.shape)
        facts = [(value.dtype, value.shape) for value in (phase, step, fresh, slot)]
        assert facts == [
            (torch.int32, ()),
            (torch.int64, ()),
            (torch.bool, ()),
            (torch.int64, (1,)),
        ]
        assert not fresh or (step, phase) == (0, SELECT)
        self.memory, self.slots, self.tally = after
        self.slot, self.step = int(slot), int(step)
        return int(phase)

    def statistics(self) -> dict[str, int]:
        names = ("fresh", "steps", "selections", "weighings", "reuses", *guard.MISSES)
        return dict(zip(names, self.tally.tolist(), strict=True))


def assert_alike(cache: Cache, rules: Rules, calls: int) -> None:
    """State and statistics, and that the statistics add up."""
    counts = cache.statistics()
    mine, theirs = cache.slots[cache.slot].tolist(), rules.kept[-1]
    assert cache.step == mine[guard.STEP] == theirs.step
    assert mine[guard.TURNS] == theirs.turns
    assert mine[guard.BEAT] == min(theirs.beat, 2)
    assert mine[guard.STATE] == counts["fresh"] == guard.WARM
    for name in ("steps", "selections", "weighings", "reuses"):
        assert counts[name] == getattr(rules, name), name
    assert {reason: counts[reason] for reason in REASONS} == rules.misses
    assert sum(counts[reason] for reason in REASONS) == counts["selections"]
    assert counts["weighings"] >= counts["selections"]
    assert counts["reuses"] + counts["weighings"] == calls
    assert counts["steps"] <= calls


# Few values, so that repetitions, rises and falls are all common.
TIMES = st.one_of(
    st.integers(0, 6).map(float), st.sampled_from((0.5, -0.0, 1000.0, math.inf, -math.inf, NAN))
)
PARTS = st.lists(st.sampled_from((0.0, 1.0, 2.0)), min_size=2, max_size=2)
BROKEN = st.just([1.0, NAN])
EVENTS = ("fall",) * 4 + ("repeat", "stage", "any", "one item", "part", "prompt", "prompt", "reset")


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Any], dict[str, Any]]:
    """Calls `(timesteps, latents, conditioning, grid)` and None for a reset; the options.

    Many calls go on where the one before was: unrelated calls would rarely reuse anything.
    """
    slots = draw(st.sampled_from((0, 1, 2, 2, 3)))  # 0: conditioning is not looked at
    grids, blind = draw(st.booleans()), draw(st.integers(0, 4)) == 0
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
        if event in ("fall", "stage"):
            call[1] = draw(PARTS)
        elif event == "any":
            call[0] = [draw(TIMES)] * items
        elif event == "one item":
            call[0] = [draw(TIMES), *call[0][1:]][::-1]
        elif event == "part":
            call[draw(st.integers(1, 3))] = draw(st.one_of(PARTS, PARTS, PARTS, BROKEN))
        elif event == "prompt":
            call[2] = [draw(st.sampled_from((0.0, 1.0, 2.0))), 0.0]
        latents, conditioning, grid = call[1:]
        seen = [[] if blind else latents, conditioning if slots else None]
        steps.append((call[0], *seen, grid if grids else None))
    options = {"select_every": draw(st.integers(1, 5)), "weigh_every": draw(st.integers(1, 5))}
    return steps, {**options, "slots": max(slots, 1), "take_turns": draw(st.integers(0, 3)) == 0}


@settings(deadline=None, max_examples=400, derandomize=True, database=None)
@given(histories(), st.sampled_from((torch.float32, torch.float64)))
def test_decide_follows_the_rules(
    history: tuple[list[Any], dict[str, Any]], dtype: torch.dtype
) -> None:
    steps, options = history
    cache, rules = Cache(**options), Rules(**options)
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


def phases(
    times: Sequence[float], latents: Sequence[float], every: tuple[int, int], rises: bool = False
) -> list[int]:
    cache = Cache(*every, rises=rises)
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


HEUN = [9, 8, 8, 7, 7, 6, 6, 5]


def test_stages_of_one_step_go_on() -> None:
    """Heun calls twice at a timestep, with latents close together; each call is a step."""
    near_latents = [1.0, 1.1, 1.15, 1.2, 1.25, 1.3, 1.35, 1.4]
    expected = [SELECT, REUSE, WEIGH, REUSE, SELECT, REUSE, WEIGH, REUSE]
    assert phases(HEUN, near_latents, (4, 2)) == expected


def test_a_repeated_timestep_never_reuses_for_other_noise() -> None:
    other_noise = [1.0, -1.0] * 4
    expected = [SELECT, REUSE, SELECT, REUSE, SELECT, REUSE, SELECT, REUSE]
    assert phases(HEUN, other_noise, (10, 10)) == expected


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([9, 9], [SELECT, SELECT]),  # pictures of one step, however alike
        ([9, 8, 7, 7], [SELECT, REUSE, REUSE, SELECT]),  # ends where a picture of one step begins
        ([9, 8, 8, 8], [SELECT, REUSE, REUSE, SELECT]),  # no step has three stages
        ([9, 8, 8, 7, 6, 6], [SELECT, REUSE, REUSE, REUSE, REUSE, SELECT]),  # PNDM, and another
        ([9, 8, 8, 7, 7, 6], [SELECT] + [REUSE] * 5),
    ],
)
def test_only_a_timestep_that_fell_once_has_a_second_stage(
    times: list[int], expected: list[int]
) -> None:
    assert phases(times, [1 + step / 10 for step in range(len(times))], (10, 10)) == expected


def test_inversion_selects_at_every_rise() -> None:
    assert phases(range(6), range(6), (10, 5)) == [SELECT] * 6


def test_a_generation_after_one_that_rose_selects() -> None:
    times = [0.0, 0.25, 0.5, 0.75] * 2
    assert phases(times, range(8), (10, 5))[4] == SELECT


@pytest.mark.parametrize("end", [3, 5, 9])
def test_where_time_runs_upwards_a_fall_begins_a_picture(end: int) -> None:
    """As Z-Image has it: `1 - t`, from 0 on, for pictures of several lengths."""
    times = [*range(end), *range(5)]
    mirrored = [-time for time in times]
    found = phases(times, range(len(times)), (2, 1), rises=True)
    assert found == phases(mirrored, range(len(times)), (2, 1))
    assert found[end:] == [SELECT, WEIGH, SELECT, WEIGH, SELECT]
    assert phases(times, range(len(times)), (2, 1))[1:end] == [SELECT] * (end - 1)


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


def test_prompts_that_take_turns_keep_a_generation_each() -> None:
    """As many selections a prompt as one alone; a third one pushes the oldest out."""
    cache, expected = Cache(3, 3, slots=2), [SELECT, REUSE, REUSE, SELECT, REUSE]
    found = [
        [cache.call(torch.tensor(9.0 - step), [step], [prompt]) for prompt in (1.0, 2.0)]
        for step in range(5)
    ]
    assert found == [[phase] * 2 for phase in expected]
    assert cache.statistics()["steps"] == 5
    assert [cache.call(torch.tensor(1.0), [9], [prompt]) for prompt in (3.0, 2.0)] == [
        SELECT,
        REUSE,
    ]
    assert cache.call(torch.tensor(0.0), [10], [1.0]) == SELECT
    counts = cache.statistics()
    assert (counts["cold"], counts["conditioning"]) == (2, 2)


def test_a_picture_of_one_step_selects_for_its_prompt() -> None:
    """The same seed and another prompt, then the first prompt and another seed."""
    cache = Cache(3, 3, slots=2)
    calls = [(1, 1.0), (1, 2.0), (2, 1.0), (2, 2.0), (2, 3.0)]
    assert {cache.call(torch.tensor(9.0), [noise], [prompt]) for noise, prompt in calls} == {SELECT}


def test_one_slot_gives_its_prompt_up() -> None:
    cache = Cache(3, 3, slots=1)
    prompts = (1.0, 2.0, 1.0, 1.0)
    found = [cache.call(torch.tensor(9.0 - n), [n], [p]) for n, p in enumerate(prompts)]
    assert found == [SELECT, SELECT, SELECT, REUSE]


def test_a_reset_reaches_every_slot() -> None:
    cache = Cache(3, 3, slots=2)
    for prompt in (1.0, 2.0):
        cache.call(torch.tensor(9.0), [0], [prompt])
    cache.tally[guard.FRESH] = guard.RESET
    for prompt in (2.0, 1.0):
        assert cache.call(torch.tensor(8.0), [1], [prompt]) == SELECT
    assert cache.statistics()["reset"] == 2
    assert [cache.call(torch.tensor(7.0), [2], [p]) for p in (1.0, 2.0)] == [REUSE, REUSE]


def test_every_tensor_must_be_close_by() -> None:
    """A control picture that stays says nothing of the noise."""
    first, second = torch.tensor([[9.0, 9.0], [1.0, -1.0]]), torch.tensor([[9.0, 9.0], [-1.0, 1.0]])
    cache = Cache(9, 9)
    calls = [(9.0, first), (8.0, first), (8.0, first * 1.01), (7.0, first), (7.0, second)]
    found = [cache.call(torch.tensor(time), drawn=drawn) for time, drawn in calls]
    assert found == [SELECT, REUSE, REUSE, REUSE, SELECT]
