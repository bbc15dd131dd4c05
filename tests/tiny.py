"""One small block with a reuse cache, and an oracle that merges it by hand, plan by plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import toma_fx
from tests.eager_merge import relative
from tests.models import positions
from tests.test_guard import Rules
from toma_fx import ReuseStats, TomaConfig, reference
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


class TrippedError(RuntimeError):
    """What fails in these tests."""


class Tripwire:
    """An operation of the graph that fails when it is told to."""

    armed = False
    error: type[BaseException] = TrippedError


@torch.library.custom_op("toma_fx_tests::tripwire", mutates_args=())
def tripwire(hidden: Tensor) -> Tensor:
    if Tripwire.armed:
        raise Tripwire.error
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
    """What one graph remembers for one stream: the rules of its guard, and a plan a slot."""

    config: TomaConfig
    rules: Rules
    sequence: Tensor | None = None
    picks: Tensor | None = None
    weights: Tensor | None = None

    def update(self, phase: int, hidden: Tensor, ids: Tensor) -> None:
        self.picks, self.weights = self.rules.kept[-1].plan
        self._plan(phase, hidden, ids)
        self.rules.kept[-1].plan = self.picks, self.weights

    def _plan(self, phase: int, hidden: Tensor, ids: Tensor) -> None:
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
        config = self.config
        slots = config.slots if "conditioning" in config.guard else 1
        turns = "turns" in config.guard
        rules = Rules(config.select_every, config.weigh_every, slots, turns)
        return self.plans.setdefault((given[0].shape, stream), HandPlan(config, rules))

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


def generation(
    times: Sequence[float], picture: int = 0, prompt: int = 0
) -> list[tuple[Tensor, ...]]:
    """The calls of one picture: its noise changes with every step."""
    return [inputs(t, 100 * picture + step, prompt) for step, t in enumerate(times)]


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
    Tripwire.armed = True
    try:
        with pytest.raises(TrippedError):
            yield
    finally:
        Tripwire.armed = False


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """The models are so small that a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)
