"""Bisection of real models whose merged regions were broken on purpose."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from tests.helpers import SMALL, Attention, Block, Sequence, repeated_tokens
from toma_fx import BisectError, TomaConfig, bisect
from toma_fx.bisect import change
from toma_fx.passes.rewrite.merged import MergedRegions

CONFIG = TomaConfig(**{**SMALL, "share": "region"})


class Layer(nn.Module):
    """An attention and an MLP."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.attention, self.mlp = Attention(seed=seed), Block(seed=seed)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.attention(x))


MODEL = Sequence(*(Layer(seed) for seed in range(3)))
X = repeated_tokens(1, 16)


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Break regions by the paths of their modules: their results double if all are merged."""

    def broken(*paths: str) -> None:
        leave = MergedRegions._leave

        def doubled(self: Any, node: fx.Node, index: int, region: Any) -> None:
            leave(self, node, index, region)
            merged = {region.module_path for region in self._owner.values()}
            if region.module_path in paths and merged.issuperset(paths):
                new = self._full.read(node)
                twice = self._emit.call(torch.ops.aten.mul.Tensor, (new, 2.0), like=node)
                self._full.natural[node] = twice

        monkeypatch.setattr(MergedRegions, "_leave", doubled)

    return broken


def differs(merged: Callable[..., Any]) -> bool:
    """Repeated tokens lose nothing: whatever changes is a bug."""
    with torch.no_grad():
        return change(MODEL(X), merged(X)) > 1e-4


def paths(regions: Iterable[Any]) -> list[str]:
    return [region.module_path for region in regions]


@pytest.mark.parametrize(
    "culprits",
    [
        ("blocks.1.mlp",),
        ("blocks.0.attention", "blocks.2.attention"),
    ],
)
def test_the_broken_regions_are_named(
    plant: Callable[..., None], culprits: tuple[str, ...]
) -> None:
    plant(*culprits)
    told: list[tuple[int, bool]] = []
    found = bisect(MODEL, differs, config=CONFIG, tell=lambda *trial: told.append(trial))
    assert paths(found.regions) == list(culprits)
    assert found.merged == 6
    assert told[0] == (6, True)
    assert told[1] == (0, False)
    assert told[-1] == (6 - len(culprits), False)  # without them
    assert found.cured
    assert len(told) == found.trials <= 20
    for path in culprits:
        assert path in str(found)


def test_the_configurations_show_the_failure_and_avoid_it(plant: Callable[..., None]) -> None:
    plant("blocks.2.attention")
    found = bisect(MODEL, differs, config=CONFIG)
    alone = bisect(MODEL, differs, config=found.alone)
    assert (alone.merged, paths(alone.regions)) == (1, ["blocks.2.attention"])
    without = bisect(MODEL, differs, config=found.without)
    assert (without.merged, without.regions, without.trials) == (5, (), 1)
    assert str(without) == "nothing is wrong with 5 regions merged\n"


def test_what_else_is_wrong_is_said(plant: Callable[..., None]) -> None:
    plant("blocks.0.mlp")
    plant("blocks.2.mlp")
    found = bisect(MODEL, differs, config=CONFIG)
    assert paths(found.regions) == ["blocks.0.mlp"]
    assert not found.cured
    assert "leave them out and bisect again" in str(found)


def test_graph_breaks_are_searched_as_one_model(plant: Callable[..., None]) -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Block(), Block(seed=1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            torch._dynamo.graph_break()
            return self.second(x)

    model = Broken()
    plant("second")
    found = bisect(model, lambda merged: change(model(X), merged(X)) > 1e-4, config=CONFIG)
    assert found.merged == 2
    assert paths(found.regions) == ["second"]
    assert found.without.exclude == ("feed_forward:second",)


def test_a_model_that_is_wrong_anyway_is_no_case_for_merging() -> None:
    with pytest.raises(BisectError, match="wrong with nothing merged, too"):
        bisect(MODEL, lambda merged: merged(X) is not None, config=CONFIG)
    with pytest.raises(BisectError, match="no region was merged"):
        bisect(MODEL, lambda merged: True, config=CONFIG)


def test_errors_of_the_callers_test_end_the_search() -> None:
    def wrong(merged: Callable[..., Any]) -> bool:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        bisect(MODEL, wrong, config=CONFIG)


def test_change() -> None:
    one, nan = torch.ones(4), torch.full((4,), float("nan"))
    assert change(one, one) == 0
    assert change(one, 1.5 * one) == pytest.approx(0.5)
    assert change({"a": one, "b": (one, 3)}, {"a": one, "b": (2 * one, 3)}) == pytest.approx(1)
    assert change(one, nan) == change(one, one[:2]) == change((one,), (one, one)) == float("inf")
    assert change(one.half(), one) == 0
    assert change(0 * one, 0 * one) == 0
