"""Windows of several frames, and what users are told of them."""

from __future__ import annotations

import math

import pytest
import torch

from tests.helpers import CHANNELS, Block, Picture, merged
from toma_fx.order import hilbert_order, tile_order

Sides = tuple[int, ...]


@pytest.mark.parametrize(
    ("grid", "window", "size"),
    [
        ((4, 4, 4), (2, 2, 2), 8),
        ((4, 4, 4), (4, 2, 2), 16),
        ((2, 4, 8), (4, 2, 2), 8),  # no more frames than there are
        ((8, 8), (2, 4, 4), 16),
        ((4, 4, 4), (1, 4, 4), 16),
    ],
)
def test_tiles_of_several_frames(grid: Sides, window: Sides, size: int) -> None:
    x = torch.randn(2, math.prod(grid), CHANNELS)
    run = merged(Block(), x, order="tile", grid=grid, window=window)
    plan = run.graph.get_buffer("toma_plan_0_merging")
    assert plan.shape[-1] == size
    slots = dict(run.graph.named_buffers()).get("toma_order_0_slots", torch.arange(len(x[0])))
    assert torch.equal(slots, tile_order(grid, window))  # type: ignore[arg-type]
    clamped = size < math.prod(window)
    assert ("window clamped to 2×2×2" in run.region.reason) == (clamped and len(grid) == 3)


def test_where_tiles_do_not_divide_a_curve_runs_through_the_frames() -> None:
    grid = (3, 5, 4)
    run = merged(Block(), torch.randn(1, 60, CHANNELS), order="tile", grid=grid, window=(2, 2, 3))
    assert run.region.reason == "tiles do not divide 3×5×4: Hilbert windows"
    slots = run.graph.get_buffer("toma_order_0_slots")
    assert torch.equal(slots, hilbert_order(grid, frames=True))
    curve = merged(Block(), torch.randn(1, 60, CHANNELS), order="hilbert", grid=grid, window=2)
    slots = curve.graph.get_buffer("toma_order_0_slots")
    assert torch.equal(slots, hilbert_order(grid))


def test_a_picture_of_the_graph_may_have_frames_too() -> None:
    run = merged(
        Picture(Block()), torch.randn(1, CHANNELS, 4, 4, 4), order="tile", window=(2, 2, 2)
    )
    slots = run.graph.get_buffer("toma_order_0_slots")
    assert torch.equal(slots, tile_order((4, 4, 4), (2, 2, 2)))
