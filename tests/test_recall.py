"""Memory as tensor arithmetic, step by step against the specification."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from torch import Tensor

from toma_fx import recall, rotation
from toma_fx.refresh import Memory, Rotation
from toma_fx.share import Share

SHARES = (Share(1, 2), Share(1, 3), Share(2, 3), Share(1, 4), Share(3, 4))
GRIDS = ((4, 4), (3, 5), (2, 3, 3))


class Graph:
    """The functions that a graph inlines, with what it would keep between calls."""

    def __init__(self, grid: tuple[int, ...], share: Share, gain: float, more: dict[str, Any]):
        self.cells, self.share, self.gain = rotation.grid_cells(grid), share, gain
        self.more, self.history = more, more.get("history", 2)
        self.times = torch.full((recall.times_size(share),), float("nan"))
        self.last: Tensor = torch.full((2, len(self.cells), 3), float("nan"), dtype=torch.float64)
        self.before: Tensor | None = self.last.clone() if self.history == 2 else None
        fitted = self.history == 2 and "extrapolate" not in more
        self.trend: Tensor | None = torch.full((2,), float("nan")) if fitted else None
        self.heard: Tensor | None = self.last.clone() if more.get("hears") else None

    def call(self, everything: Tensor, fresh: bool, number: int | None = None) -> Tensor:
        anew = torch.tensor(fresh)
        how = self.share, self.more.get("extrapolate", 1.0), None
        told = None if number is None else torch.tensor(number)
        self.times, first, due, carried = recall.advance(self.times, anew, *how, told)
        around = rotation.stencil(self.share, self.cells.shape[1])
        rows, classes, near, weights = recall.tables(self.cells, first, self.share, *around)
        by_token = recall.by_token(classes, weights, due, carried, anew, self.gain)
        weights, carried, stored = by_token
        arguments = (rows, near, weights, carried, stored, anew)
        memory = self.last, self.before, self.trend, self.heard
        result, *new = recall.recall(everything[:, rows], *memory, *arguments)
        left = iter(new)
        self.last, self.before, self.trend, self.heard = (
            None if old is None else next(left) for old in memory
        )
        return result


class Model(RuleBasedStateMachine):
    """Calls of pictures that begin when they like, on memory that may hold anything."""

    @initialize(
        grid=st.sampled_from(GRIDS),
        share=st.sampled_from(SHARES),
        gain=st.sampled_from([0.0, 0.5, 1.0]),
        more=st.sampled_from([{}, {"history": 1}, {"extrapolate": 1.0}, {"extrapolate": 0.0}]),
        hears=st.booleans(),
    )
    def build(
        self,
        grid: tuple[int, ...],
        share: Share,
        gain: float,
        more: dict[str, Any],
        hears: bool,
    ) -> None:
        self.graph = Graph(grid, share, gain, {**more, "hears": hears})
        cells = tuple(map(tuple, self.graph.cells.tolist()))
        trend = {"trend": more["extrapolate"]} if "extrapolate" in more else {}
        history = {"history": self.graph.history}
        self.memory = Memory(Rotation(cells, share), gain=gain, **trend, **history)
        self.step = 0

    @rule(seed=st.integers(0, 9))
    def step_on(self, seed: int) -> None:
        chance = torch.Generator().manual_seed(seed)
        tokens = torch.randn(2, len(self.graph.cells), 3, generator=chance, dtype=torch.float64)
        rows = self.memory.rotation.rows(self.step)
        wanted = self.memory.recall(tokens[:, rows], self.step)
        got = self.graph.call(tokens, fresh=self.step == 0)
        torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(got[:, rows], tokens[:, rows], atol=1e-9, rtol=0)
        if self.graph.heard is not None:
            assert self.memory.heard is not None
            torch.testing.assert_close(self.graph.heard, self.memory.heard, atol=1e-6, rtol=1e-6)
        self.step += 1

    @rule()
    def begin(self) -> None:
        self.memory.forget()
        self.step = 0

    @rule()
    def spoil(self) -> None:
        """A picture that went wrong leaves nothing to the next one."""
        self.graph.last = torch.full_like(self.graph.last, float("nan"))
        if self.graph.before is not None:
            self.graph.before = torch.full_like(self.graph.before, float("inf"))
        if self.graph.trend is not None:
            self.graph.trend = torch.full_like(self.graph.trend, float("nan"))
        if self.graph.heard is not None:
            self.graph.heard = torch.full_like(self.graph.heard, float("nan"))
        self.begin()


TestModel = Model.TestCase
TestModel.settings = settings(
    max_examples=25,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def test_what_does_not_change_is_remembered_as_it_is() -> None:
    """After each class was computed once, every step gives every token its own value."""
    graph = Graph((4, 4), Share(1, 4), 1.0, {})
    tokens = torch.randn(2, 16, 3, dtype=torch.float64)
    for step in range(9):
        found = graph.call(tokens, fresh=step == 0)
        if step >= 4:
            torch.testing.assert_close(found, tokens)


@pytest.mark.parametrize("share", SHARES, ids=str)
def test_what_changes_evenly_is_followed_to_the_end(share: Share) -> None:
    """With α = 1 a straight line is predicted exactly, once each class has two values."""
    graph = Graph((4, 4), share, 0.5, {"extrapolate": 1.0})
    start, slope = torch.randn(2, 2, 16, 3, dtype=torch.float64)
    for step in range(3 * share.classes):
        tokens = start + step * slope
        found = graph.call(tokens, fresh=step == 0)
        if step >= 2 * share.classes:
            torch.testing.assert_close(found, tokens, atol=1e-5, rtol=1e-5)


def test_a_trend_that_holds_is_fitted() -> None:
    """Each item has its own: one follows a straight line, and one goes to and fro."""
    graph = Graph((4, 4), Share(1, 2), 0.5, {})
    start, slope = torch.randn(2, 2, 16, 3, dtype=torch.float64)
    trends = []
    for step in range(8):
        moved = torch.tensor([step, step // 2 % 2], dtype=torch.float64).view(2, 1, 1)
        graph.call(start + moved * slope, fresh=step == 0)
        assert graph.trend is not None
        trends.append(graph.trend.tolist())
    assert trends[:3] == [[0.5, 0.5]] * 3
    assert trends[-1] == pytest.approx([1.0, 0.0], abs=1e-6)


@given(st.floats(-1, 1), st.floats(-0.2, 0.2), st.floats(0, 2), st.integers(1, 8))
def test_a_parabola_is_followed_however_far(
    slope: float, bend: float, share: float, interval: int
) -> None:
    """What holds for a whole interval says what holds for any share of it."""

    def at(time: float) -> Tensor:
        return torch.full((1, 1, 1), 3 + slope * time + bend * time**2, dtype=torch.float64)

    last, before, after = (at(place * interval) for place in (0, -1, 1))
    assume(float((last - before).abs()) > 1e-3)
    alpha = ((after - last) / (last - before)).reshape(1)
    carried, fresh = torch.full((1, 1), share, dtype=torch.float64), torch.tensor(False)
    found = recall.predict(last, before, alpha, None, carried, fresh)
    torch.testing.assert_close(found, at(share * interval))


def test_a_trend_that_turns_is_fitted_within_bounds() -> None:
    """What grows ever faster is followed by one and a half of its trend at most."""
    graph = Graph((4, 4), Share(1, 2), 0.5, {})
    start = torch.randn(2, 16, 3, dtype=torch.float64)
    for step in range(8):
        graph.call(start * 3**step, fresh=step == 0)
    assert graph.trend is not None
    assert graph.trend.tolist() == [1.5, 1.5]


@pytest.mark.parametrize("told", [True, False])
def test_what_was_left_out_is_as_old_as_it_is(told: bool) -> None:
    """Every third call comes without it. Told the call, it follows a straight line all the same."""
    graph = Graph((4, 4), Share(1, 2), 0.5, {"extrapolate": 1.0})
    start, slope = torch.randn(2, 2, 16, 3, dtype=torch.float64)
    follows = []
    for number in (0, 1, 3, 4, 6, 7, 9, 10):
        tokens = start + number * slope
        found = graph.call(tokens, fresh=number == 0, number=number if told else None)
        follows.append(torch.allclose(found, tokens, atol=1e-5))
    assert all(follows[4:]) == told


def test_a_first_step_spreads_what_it_computed() -> None:
    graph = Graph((4, 4), Share(1, 2), 0.5, {})
    tokens = torch.arange(16, dtype=torch.float64).view(1, 16, 1).expand(2, 16, 3)
    found = graph.call(tokens, fresh=True)[0, :, 0]
    assert found[6].item() == pytest.approx((2 + 5 + 7 + 10) / 4)
    assert torch.equal(graph.last[0, :, 0], found)  # everybody's first value


def test_half_precision_is_computed_in_full() -> None:
    """Memory is of the dtype of the activations; what is added up is not."""
    graph = Graph((4, 4), Share(1, 2), 1.0, {})
    tokens = torch.randn(2, 16, 3)
    graph.last = graph.last.bfloat16()
    graph.before = graph.last.clone()
    for step in range(6):
        found = graph.call(tokens.bfloat16(), fresh=step == 0)
        assert found.dtype == graph.last.dtype == torch.bfloat16
    torch.testing.assert_close(found, tokens.bfloat16(), atol=1e-2, rtol=1e-2)
