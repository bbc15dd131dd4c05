"""What merging is worth: signs and sums that do not depend on the machine."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import toma_fx
from tests.helpers import Block, Sequence, capture, merged, repeated_tokens
from tests.tiny import Tiny, inputs
from toma_fx import TomaConfig, explain
from toma_fx.passes.find.region import MARGIN, Forecast


class Wide(nn.Module):
    """A feed-forward whose width makes it worth merging, or not."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.into, self.out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(F.gelu(self.into(self.norm(x))))


def explained(width: int, tokens: int = 1024, **options: object) -> object:
    with torch.device("meta"):
        model, x = Wide(width), torch.randn(1, tokens, width)
    settings = {"order": "stripe", "device": "h200", **options}
    return explain(model, x, config=TomaConfig(**settings))


def test_auto_merges_where_it_gains() -> None:
    report = explained(1280, 4096)
    (region,) = report.regions
    assert region.status == "merged"
    assert region.seconds_after < region.seconds_before * (1 - MARGIN)
    assert report.forecast.speedup > 1


def test_auto_leaves_alone_what_costs_more_than_it_saves() -> None:
    report = explained(32, 256)
    (region,) = report.regions
    assert region.status == "skipped"
    assert region.reason.startswith("merging gains nothing: predicted ")
    assert region.seconds_after == region.seconds_before > 0
    assert report.forecast.seconds_after == report.forecast.seconds_before


@pytest.mark.parametrize("regions", ["all", ("feed_forward",)])
def test_asked_for_regions_are_merged_whatever_they_cost(regions: object) -> None:
    report = explained(32, 256, regions=regions)
    assert report.regions[0].status == "merged"
    assert report.regions[0].seconds_after > report.regions[0].seconds_before
    assert report.forecast.speedup < 1


def test_more_removed_is_predicted_faster() -> None:
    speeds = [explained(1280, 4096, ratio=r).forecast.speedup for r in (0.25, 0.5, 0.75)]
    assert speeds == sorted(speeds)
    assert speeds[0] > 1


def test_rarer_planning_costs_less() -> None:
    costs = [explained(1280, 4096, select_every=n).forecast.planning_seconds for n in (1, 5, 20)]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] > 0


def test_plans_take_the_memory_that_they_take() -> None:
    run = merged(Sequence(Block(), Block()), repeated_tokens(2, 64))
    buffers = dict(run.graph.named_buffers())
    held = sum(b.numel() * b.element_size() for n, b in buffers.items() if "toma_plan_" in n)
    assert run.report.forecast.plan_bytes == held


def test_plans_of_all_slots_count() -> None:
    model, config = Tiny(), TomaConfig(window=4, min_tokens=16, regions="all", slots=3)
    result = toma_fx.rewrite(*capture(model, *inputs(9)), config)
    state = dict(result.graph_module.named_buffers())
    held = sum(b.numel() * b.element_size() for n, b in state.items() if "toma_plan_" in n)
    assert result.report.forecast.plan_bytes == held
    alone = dataclasses.replace(config, guard=("timestep",))
    single = toma_fx.rewrite(*capture(model, *inputs(9)), alone).report.forecast
    assert held == 3 * single.plan_bytes


def test_a_model_of_two_graphs_adds_up() -> None:
    first, second = explained(1280, 4096), explained(640, 1024)
    total = first.forecast + second.forecast
    first.extend(second)
    assert first.forecast == total
    assert total.seconds_before > max(second.forecast.seconds_before, total.seconds_after)


def test_a_faster_device_is_predicted_faster() -> None:
    times = [explained(1280, 4096, device=name).forecast.seconds_before for name in ("cpu", "h200")]
    assert times[0] > 10 * times[1]


def test_the_model_counts_more_than_its_regions() -> None:
    report = explained(1280, 4096)
    assert report.forecast.seconds_before >= report.regions[0].seconds_before


@pytest.mark.parametrize(
    ("after", "gains"), [(0.5, True), (1 - MARGIN - 0.001, True), (1 - MARGIN, False), (2.0, False)]
)
def test_a_gain_must_exceed_the_margin(after: float, gains: bool) -> None:
    assert Forecast(1.0, after).gains is gains
