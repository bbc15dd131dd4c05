"""Reuse across steps, end to end: every picture is what its own history of plans makes it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import toma_fx
from tests.eager_merge import relative
from tests.tiny import (
    SHAPES,
    Oracle,
    Tiny,
    TrippedError,
    assert_adds_up,
    compiled,
    counts,
    failing,
    generation,
    inputs,
    one_thread,
    open_stream,
    same,
)
from toma_fx import ReuseStats, reuse_stats

__all__ = ["one_thread"]  # the fixture of these tests


def test_the_oracle_can_tell_plans_apart() -> None:
    """Reusing, weighing, selecting and not merging at all give four different pictures."""
    model = Tiny()
    first, second = inputs(9, latents=1), inputs(8, latents=2)
    results = []
    for every in ((1, 1), (4, 1), (4, 4)):
        oracle = Oracle(model, select_every=every[0], weigh_every=every[1])
        oracle(*first)
        results.append(oracle(*second))
    results.append(model(*second))
    for place, result in enumerate(results):
        assert all(relative(result, other) > 1e-2 for other in results[:place])


def test_ten_steps_select_three_times_and_weigh_five_times() -> None:
    model = Tiny()
    options = {"select_every": 4, "weigh_every": 2}
    run, oracle = compiled(model, **options), Oracle(model, **options)
    for call in generation(range(10, 0, -1)):
        assert same(run(*call), oracle(*call))
    stats = reuse_stats(model)
    assert (stats.groups, stats.steps) == (1, 10)
    assert (stats.selections, stats.weighings, stats.reuses) == (3, 5, 5)
    assert (stats.misses["cold"], stats.misses["schedule"]) == (1, 2)
    for call in generation(range(10, 0, -1), picture=1):
        assert same(run(*call), oracle(*call))
    stats = reuse_stats(model)
    assert (stats.selections, stats.weighings, stats.reuses) == (6, 10, 10)
    assert (stats.misses["new_generation"], stats.misses["schedule"]) == (1, 4)
    assert_adds_up(stats, 20)


def test_a_second_image_is_the_image_made_first() -> None:
    """Bit for bit, and although reuse did happen."""
    model = Tiny()
    calls = generation(range(6, 0, -1), picture=1, prompt=1)
    run = compiled(model, select_every=4, weigh_every=2)
    alone = [run(*call) for call in calls]
    run = compiled(model, select_every=4, weigh_every=2)
    for call in generation(range(9, 0, -1)):
        run(*call)
    before = reuse_stats(model)
    assert all(torch.equal(run(*call), result) for call, result in zip(calls, alone, strict=True))
    assert counts(reuse_stats(model), before)["reuses"] == 3


def test_reused_steps_differ_from_recomputed_ones() -> None:
    model = Tiny()
    calls = generation(range(6, 0, -1))
    run = compiled(model, select_every=3, weigh_every=3)
    reused = [run(*call) for call in calls]
    run = compiled(model, select_every=1)
    anew = [run(*call) for call in calls]
    for step, (a, b) in enumerate(zip(reused, anew, strict=True)):
        assert torch.equal(a, b) == (step % 3 == 0)
        assert step % 3 == 0 or relative(a, b) > 1e-2


def test_sequential_guidance_keeps_a_plan_for_each_half() -> None:
    """Each half is what it would be alone, and selects as often: at steps 0, 3, 6 and 9 of 12."""
    model = Tiny()
    halves = [[inputs(12 - step, step, prompt) for step in range(12)] for prompt in (0, 1)]
    alone = []
    for half in halves:
        run = compiled(model)
        alone.append([run(*call) for call in half])
        gc.collect()
        assert reuse_stats(model).selections == 4
    run = compiled(model)
    gc.collect()
    for step in range(12):
        for half, expected in zip(halves, alone, strict=True):
            assert torch.equal(run(*half[step]), expected[step])
    stats = reuse_stats(model)
    assert (stats.steps, stats.selections, stats.reuses) == (12, 8, 16)
    assert (stats.misses["cold"], stats.misses["schedule"]) == (2, 6)


def test_prompts_may_keep_their_plan_on_request() -> None:
    """Both halves by the plan of the first, as where the prompt changes from step to step."""
    model = Tiny()
    options: dict[str, Any] = {"guard": ("timestep",)}
    run, oracle = compiled(model, **options), Oracle(model, **options)
    halves = [inputs(9, 1, prompt) for prompt in (0, 1)]
    results = [run(*half) for half in halves]
    assert all(same(r, oracle(*half)) for r, half in zip(results, halves, strict=True))
    assert relative(results[1], Oracle(model)(*halves[1])) > 1e-2  # not a plan of its own
    stats = reuse_stats(model)
    assert (stats.steps, stats.selections, stats.reuses) == (1, 1, 1)
    other = inputs(9, 2, 1)
    assert same(run(*other), Oracle(model)(*other))
    assert reuse_stats(model).misses["new_generation"] == 1


def test_prompts_that_change_at_every_step_select_at_every_step() -> None:
    model = Tiny()
    run = compiled(model)
    for step in range(4):
        call = inputs(9 - step, step, prompt=step)
        assert same(run(*call), Oracle(model)(*call))
    assert reuse_stats(model).selections == 4


ONE_STEP = [9.0] * 4
HEUN = [9.0, 8.0, 8.0, 7.0, 7.0, 6.0, 6.0, 5.0]
INVERSION = [1.0, 2.0, 3.0, 4.0]
RESTART = [9.0, 8.0, 7.0, 8.5, 7.5, 6.5]


def test_second_stages_reuse_the_plan_of_the_first() -> None:
    """As Heun calls: each timestep twice, with latents that lie close together."""
    model = Tiny()
    run, oracle = compiled(model), Oracle(model)
    start = inputs(0)[0]
    for step, time in enumerate(HEUN):
        call = inputs(time)
        moved = start + 0.1 * step * call[0].roll(1)
        assert same(run(moved, *call[1:]), oracle(moved, *call[1:]))
    assert reuse_stats(model).selections == 3  # of eight calls, as Euler's eight would
    assert reuse_stats(model).steps == 8


@pytest.mark.parametrize(
    ("times", "selections"), [(ONE_STEP, 4), (HEUN, 4), (INVERSION, 4), (RESTART, 2)]
)
def test_schedules_with_repetitions_and_rises(times: list[float], selections: int) -> None:
    """A repeated timestep with other latents and a rising one never see an older plan."""
    model = Tiny()
    run, oracle = compiled(model), Oracle(model)
    for call in generation(times):
        assert same(run(*call), oracle(*call))
    assert reuse_stats(model).selections == selections


def test_an_item_that_is_replaced_selects_for_the_batch() -> None:
    """A batch whose items stand at timesteps of their own, refilled as they finish."""
    model = Tiny()
    run, oracle = compiled(model), Oracle(model)
    times = [(9, 5), (8, 4), (7, 9), (6, 8), (6, 7)]
    for step, pair in enumerate(times):
        hidden, _, *rest = inputs(0, step, shape=SHAPES[1])
        call = (hidden, torch.tensor(pair, dtype=torch.float32), *rest)
        assert same(run(*call), oracle(*call))
    stats = reuse_stats(model)
    assert (stats.misses["cold"], stats.misses["new_generation"], stats.reuses) == (1, 2, 2)


@pytest.mark.parametrize(
    ("guard", "slots"),
    [
        (("timestep",), 2),
        (("timestep", "conditioning"), 2),
        (("conditioning", "timestep", "turns"), 1),
    ],
)
def test_any_history_gives_the_pictures_of_the_plans_it_made(
    guard: tuple[str, ...], slots: int
) -> None:
    """Pictures, resets, grids, shapes, streams and failures in any order."""
    model = Tiny()
    options: dict[str, Any] = {"select_every": 3, "weigh_every": 2, "guard": guard, "slots": slots}
    run = compiled(model, **options)
    for shape in SHAPES:
        run(*inputs(9, shape=shape))
    reached: set[str] = set()

    @settings(deadline=None, max_examples=40, derandomize=True, database=None)
    @given(histories())
    def check(history: list[tuple[str, str, tuple[Tensor, ...]]]) -> None:
        oracle = Oracle(model, **options)
        toma_fx.reset(model)
        before = reuse_stats(model)
        for event, stream, call in history:
            perform(run, oracle, event, stream, call)
        now = reuse_stats(model)
        assert counts(now, before) == oracle.statistics()
        assert now.reuses + now.weighings - before.reuses - before.weighings == oracle.calls
        reached.update(name for name, count in oracle.statistics().items() if count)

    with torch._dynamo.config.patch(error_on_recompile=True):
        check()
    expected = set(counts(ReuseStats()))
    assert reached == expected - ({"conditioning"} if "conditioning" not in guard else set())
    assert reuse_stats(model).groups == len(SHAPES)


EVENTS = ("fall",) * 5 + ("guided", "again", "rise", "picture", "turn") + ("prompt",) * 3


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[str, str, tuple[Tensor, ...]]]:
    """`(what happens around it, stream, call)`; each stream and shape goes on where it was."""
    steps: list[tuple[str, str, tuple[Tensor, ...]]] = []
    places: dict[Any, list[Any]] = {}
    for number in range(draw(st.integers(1, 14))):
        stream = draw(st.sampled_from(("default", "default", "a", "b")))
        shape = draw(st.sampled_from((SHAPES[0], SHAPES[0], *SHAPES[1:])))
        owner = draw(st.sampled_from(((stream, shape), (stream, shape), shape)))
        place = places.setdefault(owner, [9.0, 0, 0, False])
        event = draw(st.sampled_from(EVENTS))
        if event != "guided":
            place[1] = number + 1
        if event in ("fall", "prompt", "turn"):
            place[0] -= 1
        if event == "rise":
            place[0] += 1
        if event == "picture":
            place[0] = 9.0
        if event in ("guided", "prompt"):
            place[2] = (place[2] + draw(st.sampled_from((1, 2)))) % 3
        if event == "turn":
            place[3] = not place[3]
        around = draw(st.sampled_from(("",) * 8 + ("nested", "leave", "reset", "fail")))
        timestep, latents, prompt, turned = place
        steps.append((around, stream, inputs(timestep, latents, prompt, shape, turned)))
    return steps


def perform(
    run: Callable[..., Tensor],
    oracle: Oracle,
    event: str,
    stream: str,
    call: tuple[Tensor, ...],
) -> None:
    """One event of a history, on the compiled model and by hand."""
    if event == "reset":
        toma_fx.reset(oracle.model)
        oracle.forget()
    with open_stream(oracle.model, stream, nested=event == "nested"):
        if event == "fail":
            with failing():
                run(*call)
            oracle.count(*call, stream=stream)
            oracle.forget(call)
            return
        result = run(*call)
    if event == "leave":  # an error of the caller, between two steps
        with pytest.raises(TrippedError), open_stream(oracle.model, "a"):
            raise TrippedError
    assert same(result, oracle(*call, stream=stream))
