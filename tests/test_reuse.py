"""Reuse across steps, end to end: every picture is what its own history of plans makes it."""

from __future__ import annotations

import dataclasses
import gc
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import toma_fx
from tests.eager_merge import relative
from tests.models import flux, flux_inputs, positions, sdxl, sdxl_inputs
from tests.test_guard import Rules
from toma_fx import ReuseStats, TomaConfig, last_report, reference, reuse_stats
from toma_fx.operations import REUSE, SELECT
from toma_fx.order import curve_table, order_from_positions

WINDOW = 4
CURVE = curve_table()
OPTIONS: dict[str, Any] = {
    "inner_backend": "eager",
    "regions": "all",
    "window": WINDOW,
    "min_tokens": 16,
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """The models are so small that a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


class TrippedError(RuntimeError):
    """What fails in these tests."""


class _Tripwire:
    """An operation of the graph that fails when it is told to."""

    armed = False
    error: type[BaseException] = TrippedError


@torch.library.custom_op("toma_fx_tests::tripwire", mutates_args=())
def tripwire(hidden: Tensor) -> Tensor:
    if _Tripwire.armed:
        raise _Tripwire.error
    return hidden.clone()


@tripwire.register_fake
def _(hidden: Tensor) -> Tensor:
    return torch.empty_like(hidden)


class Tiny(nn.Module):
    """One block over tokens `[B, N, 4]`: attention with rotary positions, then an MLP.

    As in Flux the grid is data, `ids` `[N, 3]`. The prompt `[B, 6]` and the timestep modulate
    what the block sees, so that plans depend on them. The tripwire stands before the block: the
    guard has decided by then, and no plan is made yet.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.lift, self.lower = nn.Linear(4, 16), nn.Linear(16, 4)
        self.clock, self.words = nn.Linear(8, 16), nn.Linear(6, 16)
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.qkv, self.join = nn.Linear(16, 48), nn.Linear(16, 16)
        self.widen, self.narrow = nn.Linear(16, 32), nn.Linear(32, 16)
        self.eval()

    def forward(self, hidden: Tensor, timestep: Tensor, prompt: Tensor, ids: Tensor) -> Tensor:
        x = self.lift(hidden)
        x = x + self.attend(self.entry(x, timestep, prompt), *self.tables(ids))
        x = x + self.mlp(self.norm2(x))
        return self.lower(x)

    def entry(self, x: Tensor, timestep: Tensor, prompt: Tensor) -> Tensor:
        angle = timestep.reshape(-1, 1).float() * 10.0 ** -torch.arange(4)
        clock = self.clock(torch.cat((angle.sin(), angle.cos()), -1))
        shift = tripwire((clock + 2 * self.words(prompt)).unsqueeze(1))
        return self.norm1(x) * (1 + shift) + shift.flip(-1)

    def tables(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        angle = torch.cat((ids[:, 1:2], ids[:, 2:3]), 1).repeat_interleave(4, 1) / 3
        return angle.cos(), angle.sin()

    def attend(self, entry: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        parts = (p.unflatten(-1, (2, 8)).transpose(1, 2) for p in self.qkv(entry).chunk(3, -1))
        query, key, value = parts
        query, key = (part * cosines + rotated(part) * sines for part in (query, key))
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.join(attended.transpose(1, 2).flatten(2))

    def mlp(self, entry: Tensor) -> Tensor:
        return self.narrow(F.gelu(self.widen(entry)))


def rotated(part: Tensor) -> Tensor:
    left, right = part.chunk(2, -1)
    return torch.cat((-right, left), -1)


SHAPES = (((8, 8), 1), ((8, 8), 2), ((8, 12), 1))
SQUARE = SHAPES[0]


def seeded(seed: int, *sizes: int) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


def inputs(
    timestep: float,
    latents: int = 0,
    prompt: int = 0,
    shape: tuple[tuple[int, int], int] = SQUARE,
    turned: bool = False,
) -> tuple[Tensor, ...]:
    """A call of `Tiny`: noise and prompt by number; `turned` is the transposed grid."""
    (height, width), batch = shape
    ids = positions(width, height) if turned else positions(height, width)
    if turned and height == width:  # another grid of as many tokens
        ids = positions(height // 2, width * 2)
    noise = seeded(latents, batch, height * width, 4)
    return noise, torch.tensor(float(timestep)), seeded(1000 + prompt, batch, 6), ids


def compiled(model: nn.Module, **options: Any) -> Callable[..., Any]:
    torch._dynamo.reset()
    chosen = {**OPTIONS, **options}
    return torch.compile(model, backend="toma", fullgraph=True, options=chosen)


@dataclasses.dataclass
class HandPlan:
    """What one graph remembers for one stream: the rules of its guard, and a plan."""

    config: TomaConfig
    rules: Rules
    sequence: Tensor | None = None
    picks: Tensor | None = None
    weights: Tensor | None = None

    def update(self, phase: int, hidden: Tensor, ids: Tensor) -> None:
        self.sequence = order_from_positions(ids, WINDOW, "tile", CURVE)
        if phase == REUSE:
            return
        cells = self._cells(hidden)
        if phase == SELECT:
            kept = cells.shape[1] - int(self.config.ratio * cells.shape[1])
            self.picks = reference.select_destinations(cells, kept)
        assert self.picks is not None
        self.weights = reference.assignment(cells, self.picks, self.config.temperature)

    def merge(self, hidden: Tensor) -> Tensor:
        return reference.merge(self._cells(hidden), self.weights).reshape(len(hidden), -1, 16)

    def unmerge(self, merged: Tensor) -> Tensor:
        cells = reference.unmerge(merged.reshape(len(self.picks), -1, 16), self.weights)
        return cells.reshape(len(merged), -1, 16)[:, torch.argsort(self.sequence)]

    def rows(self, batch: int) -> Tensor:
        """`[B, D]` tokens that are destinations."""
        slots = self.picks.view(batch, -1, self.picks.shape[-1])
        first = torch.arange(slots.shape[1]).view(1, -1, 1) * WINDOW**2
        return self.sequence[(slots + first).flatten(1)]

    def _cells(self, hidden: Tensor) -> Tensor:
        return hidden[:, self.sequence].reshape(-1, WINDOW**2, 16)


class Oracle:
    """A `Tiny` merged by hand, with plans and rules kept for each graph and stream."""

    def __init__(self, model: Tiny, **options: Any) -> None:
        self.model = model
        self.config = TomaConfig(window=WINDOW, min_tokens=16, **options)
        self.plans: dict[tuple[torch.Size, str], HandPlan] = {}
        self.calls = 0

    def __call__(self, *given: Tensor, stream: str = "default") -> Tensor:
        plan = self.plan(given, stream)
        phase = self.count(*given, stream=stream)
        hidden, timestep, prompt, ids = given
        x = self.model.lift(hidden)
        entry = self.model.entry(x, timestep, prompt)
        plan.update(phase, entry, ids)
        rows = plan.rows(len(hidden))
        tables = [table[rows].unsqueeze(1) for table in self.model.tables(ids)]
        x = x + plan.unmerge(self.model.attend(plan.merge(entry), *tables))
        x = x + plan.unmerge(self.model.mlp(plan.merge(self.model.norm2(x))))
        return self.model.lower(x)

    def count(self, *given: Tensor, stream: str = "default") -> int:
        """The phase of a call, noted by the rules."""
        hidden, timestep, prompt, ids = given
        self.calls += 1
        words = prompt.flatten().tolist() if "conditioning" in self.config.guard else None
        rules = self.plan(given, stream).rules
        parts = hidden.flatten().tolist(), words, ids.flatten().tolist()
        return rules.call(timestep.flatten().tolist(), *parts)

    def forget(self, given: Sequence[Tensor] | None = None) -> None:
        """Every stream of all graphs, or of the graph of a call."""
        for (size, _), plan in self.plans.items():
            if given is None or size == given[0].shape:
                plan.rules.fresh = "reset"

    def plan(self, given: Sequence[Tensor], stream: str) -> HandPlan:
        fresh = HandPlan(self.config, Rules(self.config.select_every, self.config.weigh_every))
        return self.plans.setdefault((given[0].shape, stream), fresh)

    def statistics(self) -> dict[str, int]:
        total = dict.fromkeys(counts(ReuseStats()), 0)
        for plan in self.plans.values():
            names = ("steps", "selections", "weighings", "reuses")
            mine = {name: getattr(plan.rules, name) for name in names}
            for name, count in (mine | _reasons(plan.rules.misses)).items():
                total[name] += count
        return total


def _reasons(misses: dict[str, int]) -> dict[str, int]:
    """A stream that was forgotten is as cold as one that never was."""
    merged = {"fresh": misses["cold"] + misses["reset"]}
    return merged | {name: n for name, n in misses.items() if name not in ("cold", "reset")}


def counts(stats: ReuseStats, before: ReuseStats | None = None) -> dict[str, int]:
    """Statistics in one dictionary; since `before`, where it is given."""
    names = ("steps", "selections", "weighings", "reuses")
    now = {name: getattr(stats, name) for name in names} | _reasons(stats.misses)
    old = counts(before) if before else dict.fromkeys(now, 0)
    return {name: now[name] - old[name] for name in now}


def assert_adds_up(stats: ReuseStats, calls: int) -> None:
    assert sum(stats.misses.values()) == stats.selections
    assert stats.selections <= stats.weighings
    assert stats.reuses + stats.weighings == calls


def same(result: Tensor, expected: Tensor) -> bool:
    """Up to rounding: any other plan is a thousand times further away."""
    return relative(result, expected) < 1e-5


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


def generation(
    times: Sequence[float], picture: int = 0, prompt: int = 0
) -> list[tuple[Tensor, ...]]:
    """The calls of one picture: its noise changes with every step."""
    return [inputs(t, 100 * picture + step, prompt) for step, t in enumerate(times)]


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


def test_sequential_guidance_keeps_the_plan_of_its_first_half() -> None:
    model = Tiny()
    run, oracle = compiled(model), Oracle(model)
    halves = [inputs(9, 1, prompt) for prompt in (0, 1)]
    results = [run(*half) for half in halves]
    assert all(same(r, oracle(*half)) for r, half in zip(results, halves, strict=True))
    assert relative(results[1], Oracle(model)(*halves[1])) > 1e-2  # not a plan of its own
    stats = reuse_stats(model)
    assert (stats.steps, stats.selections, stats.reuses) == (1, 1, 1)
    other = inputs(9, 2, 1)
    assert same(run(*other), Oracle(model)(*other))
    assert reuse_stats(model).misses["new_generation"] == 1


ONE_STEP = [9.0] * 4
HEUN = [9.0, 8.0, 8.0, 7.0, 7.0, 6.0, 6.0, 5.0]
INVERSION = [1.0, 2.0, 3.0, 4.0]
RESTART = [9.0, 8.0, 7.0, 8.5, 7.5, 6.5]


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


@pytest.mark.parametrize("guard", [("timestep",), ("timestep", "conditioning")])
def test_any_history_gives_the_pictures_of_the_plans_it_made(guard: tuple[str, ...]) -> None:
    """Pictures, resets, grids, shapes, streams and failures in any order."""
    model = Tiny()
    options: dict[str, Any] = {"select_every": 3, "weigh_every": 2, "guard": guard}
    run = compiled(model, **options)
    for shape in SHAPES:
        run(*inputs(9, shape=shape))
    reached: set[str] = set()

    @settings(deadline=None, max_examples=60, derandomize=True, database=None)
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


EVENTS = ("fall",) * 5 + ("guided", "again", "rise", "picture", "turn", "prompt")


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
            place[2] = 1 - place[2]
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


@contextmanager
def open_stream(model: nn.Module, name: str, nested: bool = False) -> Iterator[None]:
    if name == "default":
        yield
    elif nested:
        with toma_fx.stream(model, "outer"), toma_fx.stream(model, name):
            yield
    else:
        with toma_fx.stream(model, name):
            yield


@contextmanager
def failing() -> Iterator[None]:
    """The model fails inside of the block, after the guard and before the plan."""
    _Tripwire.armed = True
    try:
        with pytest.raises(TrippedError):
            yield
    finally:
        _Tripwire.armed = False


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
@pytest.mark.parametrize("before", [0, 1, 3])
def test_a_failed_step_leaves_no_plan(inner: str, before: int) -> None:
    """The guard has moved on when the call fails; the plan was never made."""
    model = Tiny()
    run = compiled(model, inner_backend=inner)
    calls = generation(range(9, 0, -1))
    run(*calls[0])
    toma_fx.reset(model)
    for call in calls[:before]:
        run(*call)
    with failing():
        run(*calls[before])
    for retried in (calls[before + 1], calls[before + 2]):
        oracle = Oracle(model)
        if retried is calls[before + 2]:
            oracle(*calls[before + 1])
        assert same(run(*retried), oracle(*retried))


def test_an_interrupt_is_a_failure_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Tiny()
    run = compiled(model)
    calls = generation(range(9, 0, -1))
    run(*calls[0])
    monkeypatch.setattr(_Tripwire, "error", KeyboardInterrupt)
    monkeypatch.setattr(_Tripwire, "armed", True)
    with pytest.raises(KeyboardInterrupt):
        run(*calls[1])
    monkeypatch.undo()
    assert same(run(*calls[2]), Oracle(model)(*calls[2]))
    assert reuse_stats(model).misses["reset"] == 1


def test_reset_forgets_and_keeps_the_statistics() -> None:
    model = Tiny()
    toma_fx.reset(model)  # never compiled: nothing to forget
    assert reuse_stats(model) == ReuseStats()
    run = compiled(model)
    calls = generation(range(9, 0, -1))
    for call in calls[:3]:
        run(*call)
    toma_fx.reset(model)
    assert same(run(*calls[3]), Oracle(model)(*calls[3]))
    stats = reuse_stats(model)
    assert (stats.misses["cold"], stats.misses["reset"], stats.reuses) == (1, 1, 2)
    other = Tiny(1)
    toma_fx.reset(other)
    run(*calls[4])
    assert reuse_stats(model).selections == 2  # another model's reset is not ours


def test_streams_interleave_as_if_each_were_alone() -> None:
    model = Tiny()
    options = {"select_every": 4, "weigh_every": 2}
    pictures = [generation(range(9, 0, -1), picture, picture) for picture in range(2)]
    alone = []
    for calls in pictures:
        run = compiled(model, **options)
        alone.append([run(*call) for call in calls])
    run = compiled(model, **options)
    gc.collect()  # graphs of the compiles before
    for step in range(9):
        for picture, calls in enumerate(pictures):
            with toma_fx.stream(model, f"picture {picture}"):
                result = run(*calls[step])
            assert torch.equal(result, alone[picture][step])
    stats = reuse_stats(model)
    assert (stats.steps, stats.selections, stats.weighings, stats.reuses) == (18, 6, 10, 8)
    assert_adds_up(stats, 18)


def test_guarded_conditioning_tells_interleaved_prompts_apart() -> None:
    """Every call selects: the other prompt was seen in between."""
    model = Tiny()
    run = compiled(model, guard=("timestep", "conditioning"))
    pictures = [generation(range(5, 0, -1), picture, prompt=picture) for picture in range(2)]
    for calls in zip(*pictures, strict=True):
        for call in calls:
            assert same(run(*call), Oracle(model)(*call))
    stats = reuse_stats(model)
    assert (stats.misses["conditioning"], stats.reuses) == (9, 0)


def test_guarded_conditioning_tells_interleaved_seeds_apart() -> None:
    model = Tiny()
    run = compiled(model, guard=("timestep", "conditioning"))
    pictures = [generation(range(5, 0, -1), picture) for picture in range(2)]
    oracles = [Oracle(model), Oracle(model)]
    for calls in zip(*pictures, strict=True):
        for call, oracle in zip(calls, oracles, strict=True):
            anew, goes_on = Oracle(model)(*call), oracle(*call)
            result = run(*call)
            assert same(result, anew) or same(result, goes_on)


def test_guarded_conditioning_sees_one_step_pictures_of_one_seed() -> None:
    model = Tiny()
    run = compiled(model, guard=("timestep", "conditioning"))
    for prompt in (0, 1, 2):
        call = inputs(9, 0, prompt)
        assert same(run(*call), Oracle(model)(*call))
    assert reuse_stats(model).selections == 3


def test_a_graph_compiled_inside_a_stream_belongs_to_it() -> None:
    model = Tiny()
    run, oracle = compiled(model), Oracle(model)
    run(*inputs(9, 1))
    wide = SHAPES[2]
    with toma_fx.stream(model, "a"):
        assert same(run(*inputs(9, 1, 0, wide)), oracle(*inputs(9, 1, 0, wide), stream="a"))
    outside = inputs(8, 2, 1, wide)  # the timestep fell, but this stream has no plan
    assert same(run(*outside), Oracle(model)(*outside))
    with toma_fx.stream(model, "a"):
        inside = inputs(8, 3, 0, wide)
        assert same(run(*inside), oracle(*inside, stream="a"))
    assert reuse_stats(model).misses["cold"] == 3


def test_a_reset_inside_a_stream_reaches_all_streams() -> None:
    model = Tiny()
    run = compiled(model)
    calls = generation(range(9, 0, -1))
    run(*calls[0])
    with toma_fx.stream(model, "a"):
        run(*calls[0])
        toma_fx.reset(model)
        assert same(run(*calls[1]), Oracle(model)(*calls[1]))
    assert same(run(*calls[2]), Oracle(model)(*calls[2]))
    assert reuse_stats(model).selections == 4


def test_streams_of_one_model_leave_another_alone() -> None:
    model, other = Tiny(), Tiny(1)
    run = compiled(model)
    calls = generation(range(9, 0, -1))
    oracle = Oracle(model)
    assert same(run(*calls[0]), oracle(*calls[0]))
    with toma_fx.stream(other, "a"):
        assert same(run(*calls[1]), oracle(*calls[1]))
    assert reuse_stats(model).reuses == 1


def test_no_value_recompiles() -> None:
    """One graph for all timesteps, prompts, noises and grids, with and without streams."""
    model = Tiny()
    torch._dynamo.utils.counters.clear()
    run = compiled(model)
    run(*inputs(9))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for number, timestep in enumerate((8.0, 7.25, 9.0, 9.0, math.inf, 0.0)):
            run(*inputs(timestep, number, number, turned=number % 2 == 1))
        toma_fx.reset(model)
        with toma_fx.stream(model, "a"):
            run(*inputs(1))
    assert torch._dynamo.utils.counters["toma_fx"]["graphs_rewritten"] == 1
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_nan_timesteps_and_latents_are_never_reused() -> None:
    model = Tiny()
    run = compiled(model)
    run(*inputs(9))
    for timestep in (math.nan, math.nan, 8.0):
        run(*inputs(timestep))
    noise, *rest = inputs(8.0)
    broken = noise.clone()
    broken[..., 0] = math.nan
    run(broken, *rest)
    run(broken, *rest)
    after = inputs(7.0, 5)
    run(*after)
    assert reuse_stats(model).misses["new_generation"] == 6
    toma_fx.reset(model)
    assert same(run(*after), Oracle(model)(*after))


def test_plans_do_not_keep_a_model_alive() -> None:
    model = Tiny()
    run = compiled(model)
    run(*inputs(9))
    (state,) = toma_fx.reuse._of(model)
    gone = [weakref.ref(model), weakref.ref(state), weakref.ref(state.tally)]
    with toma_fx.stream(model, "a"):
        run(*inputs(9))
    del model, run, state
    torch._dynamo.reset()
    gc.collect()
    assert [reference() for reference in gone] == [None] * 3


class Modulated(nn.Module):
    """A block as regional compilation sees it: the timestep's embedding comes from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Tiny()

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        x = x + self.inner.mlp(self.inner.norm1(x) * (1 + shift))
        return x + self.inner.mlp(self.inner.norm2(x))


def modulated_inputs(number: int) -> tuple[Tensor, Tensor]:
    return seeded(number, 1, 64, 16), seeded(50 + number, 1, 1, 16)


def test_without_a_timestep_every_call_selects_anew() -> None:
    model = Modulated()
    run = compiled(model, order="stripe")
    with pytest.warns(UserWarning, match="no single timestep input"):
        results = [run(*modulated_inputs(0))]
    results += [run(*modulated_inputs(number)) for number in (1, 2)]
    assert len(last_report().merged) == 2
    assert any("every call selects anew" in note for note in last_report().notes)
    for number in (2, 1):  # in another order: nothing is remembered
        assert torch.equal(run(*modulated_inputs(number)), results[number])


@pytest.mark.filterwarnings("ignore:toma_fx")
def test_without_a_timestep_selections_are_counted() -> None:
    model = Modulated()
    run = compiled(model, order="stripe")
    for number in range(3):
        run(*modulated_inputs(number))
    assert reuse_stats(model).selections == 3


class TwoClocks(nn.Module):
    """Two scalars feed sinusoidal embeddings, and no name tells which is the timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Tiny()

    def forward(self, hidden: Tensor, sigma: Tensor, strength: Tensor, ids: Tensor) -> Tensor:
        angle = strength.reshape(-1, 1) * torch.arange(1, 4)
        prompt = torch.cat((angle.sin(), angle.cos()), -1)
        return self.inner(hidden, sigma, prompt, ids)


def two_clocks(sigma: float, strength: float, latents: int) -> dict[str, Tensor]:
    hidden, clock, _, ids = inputs(sigma, latents)
    return {"hidden": hidden, "sigma": clock, "strength": torch.tensor(strength), "ids": ids}


def test_the_timestep_can_be_named() -> None:
    model = TwoClocks()
    run = compiled(model, timestep_input="sigma")
    run(**two_clocks(9, 1, 0))
    assert not any("timestep" in note for note in last_report().notes)
    run(**two_clocks(8, 2, 1))  # the other one may rise
    assert (reuse_stats(model).selections, reuse_stats(model).reuses) == (1, 1)
    run(**two_clocks(9, 1, 2))
    assert reuse_stats(model).misses["new_generation"] == 1


@pytest.mark.parametrize("name", [None, "sigmas"])
def test_an_unknown_timestep_is_reported_and_never_guessed(name: str | None) -> None:
    model = TwoClocks()
    said = "no single timestep input" if name is None else "timestep_input='sigmas' is no input"
    run = compiled(model, timestep_input=name)
    with pytest.warns(UserWarning, match=said):
        run(**two_clocks(9, 1, 0))
    (note,) = last_report().notes
    assert said in note
    if name:
        assert all(known in note for known in ("hidden", "sigma", "strength"))
    later = run(**two_clocks(8, 1, 1))
    run = compiled(model, timestep_input="sigma")
    assert torch.equal(run(**two_clocks(8, 1, 1)), later)  # as if it were the first


@pytest.mark.parametrize(
    ("preset", "selections", "weighings"),
    [(TomaConfig.sdxl_paper, 2, 4), (TomaConfig.flux_paper, 20, 20)],
)
def test_presets_follow_their_papers(
    preset: Callable[..., TomaConfig], selections: int, weighings: int
) -> None:
    config = preset(window=WINDOW, min_tokens=16, regions="all")
    assert preset(share="block").share == "block"
    model = Tiny()
    run = compiled(model, **dataclasses.asdict(config))
    for call in generation(range(20, 0, -1)):
        run(*call)
    stats = reuse_stats(model)
    assert (stats.steps, stats.selections, stats.weighings) == (20, selections, weighings)


def test_streams_may_be_left_in_any_order() -> None:
    model = Tiny()
    run, oracle = compiled(model), Oracle(model)
    calls = generation(range(9, 0, -1))
    assert same(run(*calls[0]), oracle(*calls[0]))
    first, second = toma_fx.stream(model, "a"), toma_fx.stream(model, "b")
    for opened in (first, second):
        opened.__enter__()
        run(*inputs(9, 50))
    for opened in (first, second):
        opened.__exit__(None, None, None)
    assert same(run(*calls[1]), oracle(*calls[1]))


class PlainNumber(nn.Module):
    """A model whose timestep is a number of Python."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Tiny()

    def forward(self, hidden: Tensor, timestep: float, prompt: Tensor, ids: Tensor) -> Tensor:
        return self.inner(hidden, torch.tensor(timestep), prompt, ids)


WHOLE = pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="whole numbers are specialised: one graph for each"
)


@pytest.mark.filterwarnings("ignore:toma_fx")
@pytest.mark.parametrize("number", [float, pytest.param(int, marks=WHOLE)])
def test_timesteps_that_are_numbers_compile_twice_at_most(number: Callable[[int], float]) -> None:
    model = PlainNumber()
    torch._dynamo.utils.counters.clear()
    run = compiled(model)
    oracle = Oracle(model.inner)
    for call in generation([9, 8, 7, 6]):
        hidden, timestep, *rest = call
        result = run(hidden, number(timestep.item()), *rest)
        # The first graph knows its timestep by heart and selects; the second one begins cold.
        if timestep.item() > 7:
            oracle.forget()
        if number is float:
            assert same(result, oracle(*call))
        else:
            assert relative(result, Oracle(model.inner)(*call)) < 1e-5
    assert torch._dynamo.utils.counters["toma_fx"]["graphs_rewritten"] <= 2


def test_two_models_of_one_class_have_plans_of_their_own() -> None:
    model, other = Tiny(0), Tiny(1)
    run = compiled(model)
    other_run = torch.compile(other, backend="toma", fullgraph=True, options=OPTIONS)
    run(*inputs(9, 1))
    call = inputs(8, 2)
    assert same(other_run(*call), Oracle(other)(*call))


def test_replaced_parameters_still_find_their_plans() -> None:
    model = Tiny()
    run = compiled(model)
    run(*inputs(9, 1))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    toma_fx.reset(model)
    call = inputs(8, 2)
    assert same(run(*call), Oracle(model)(*call))


def test_inductor_reuses_by_the_same_rules() -> None:
    """Generated kernels, once: guard state and plans live in buffers that its graph mutates."""
    model = Tiny()
    options = {"select_every": 4, "weigh_every": 2}
    run, oracle = compiled(model, inner_backend="inductor", **options), Oracle(model, **options)
    calls = generation([9, 8, 7, 6, 5, 4, 9, 8])
    calls.append(inputs(8, 7, 1))
    for call in calls:
        assert same(run(*call), oracle(*call))
    with failing():
        run(*inputs(7, 8))
    assert same(run(*inputs(6, 9)), Oracle(model, **options)(*inputs(6, 9)))
    stats = reuse_stats(model)
    assert (stats.misses["cold"], stats.misses["reset"]) == (1, 1)
    assert_adds_up(stats, 10)


def test_sdxl_reuses_with_sequential_guidance() -> None:
    model = sdxl()
    run = compiled(model, select_every=4, weigh_every=2, window=8)
    prompts = [sdxl_inputs(model, 16, 16, batch=1) for _ in range(2)]
    for step in range(10):
        sample = seeded(step, 1, 4, 16, 16)
        for prompt in prompts:
            run(**{**prompt, "sample": sample, "timestep": torch.tensor(900 - 90 * step)})
    stats = reuse_stats(model)
    assert (stats.steps, stats.selections, stats.weighings) == (10, 3, 5)
    assert_adds_up(stats, 20)


def test_flux_selects_anew_on_another_grid() -> None:
    model = flux(num_layers=1, num_single_layers=1)
    given_ = flux_inputs(model, 8, 12)
    run = compiled(model)
    for timestep, ids in ((0.9, (8, 12)), (0.8, (8, 12)), (0.7, (12, 8)), (0.6, (12, 8))):
        clock = torch.full((1,), timestep)
        result = run(**{**given_, "timestep": clock, "img_ids": positions(*ids)})[0]
    stats = reuse_stats(model)
    assert (stats.misses["grid"], stats.reuses) == (1, 2)
    run = compiled(model)
    for timestep in (0.7, 0.6):
        clock = torch.full((1,), timestep)
        again = run(**{**given_, "timestep": clock, "img_ids": positions(12, 8)})[0]
    assert torch.equal(result, again)
