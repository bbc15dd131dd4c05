"""The grid of packed tokens is read from the tables that they meet."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.helpers import (
    CHANNELS,
    Attention,
    Run,
    merged,
    relative_error,
    rotate,
    split_heads,
)
from toma_fx.order import coordinate_rows, curve_table, order_from_positions, tile_order

TILES = {"order": "tile", "window": 2}
HEAD = CHANNELS // 2
Table = Callable[..., Tensor]


class Rotary(Attention):
    """Attention whose queries and keys are rotated by angles `[N, width]` or `[B, N, width]`."""

    def __init__(self, angles: Table) -> None:
        super().__init__(self.rotated)
        self.angles = angles

    def rotated(self, block: Attention, q: Tensor, k: Tensor, v: Tensor, *given: Tensor) -> Tensor:
        angles = self.angles(*given)
        if angles.dim() == 3:
            angles = angles[:, None]
        turned = [rotate(split_heads(part), angles.cos(), angles.sin()) for part in (q, k)]
        result = torch.nn.functional.scaled_dot_product_attention(*turned, split_heads(v))
        return result.transpose(1, 2).flatten(2)


def by_sides(*sides: int) -> Tensor:
    """Angles of a grid, made as Wan and Qwen make them: side by side, expanded, folded."""
    width = HEAD // len(sides)
    parts = []
    for axis, side in enumerate(sides):
        angles = torch.outer(torch.arange(side), torch.ones(width))
        shape = [side if axis == other else 1 for other in range(len(sides))]
        parts.append(angles.view(*shape, width).expand(*sides, width))
    extra = HEAD - width * len(sides)
    parts.append(torch.zeros(*sides, extra))
    return torch.cat(parts, -1).reshape(-1, HEAD)


def used_order(run: Run) -> Tensor:
    return run.graph.get_buffer("toma_order_0_slots")


@pytest.mark.parametrize("sides", [(8, 8), (4, 16), (2, 4, 8)])
def test_a_table_that_folds_sides(sides: tuple[int, ...]) -> None:
    run = merged(Rotary(lambda: by_sides(*sides)), torch.randn(2, 64, CHANNELS), **TILES)
    assert run.region.status == "merged", run.region.reason
    assert torch.equal(used_order(run), tile_order(sides, 2))


def test_sides_that_are_folded_in_two_steps() -> None:
    """Each frame first, then all of them (CogVideoX)."""

    def angles() -> Tensor:
        frames = by_sides(4, 4).view(4, 4, HEAD).expand(4, 4, 4, HEAD) * 1.0
        return frames.reshape(4, 16, HEAD).flatten(0, 1)

    run = merged(Rotary(angles), torch.randn(1, 64, CHANNELS), **TILES)
    assert torch.equal(used_order(run), tile_order((4, 4, 4), 2))


def ids(*sides: int) -> Tensor:
    return torch.stack(torch.meshgrid(*map(torch.arange, sides), indexing="ij"), -1).flatten(0, -2)


def angles_of(coordinates: Tensor) -> Tensor:
    """`[…, N, k]` to `[…, N, width]`."""
    each = coordinates[..., :3].float()
    return torch.nn.functional.pad(each.repeat_interleave(2, -1), (0, HEAD - 2 * each.shape[-1]))


@pytest.mark.parametrize(
    ("sides", "given", "read"),
    [
        ((8, 8), ids(8, 8), angles_of),
        ((8, 8), ids(8, 8)[None], lambda t: angles_of(t[0])),
        ((4, 16), ids(4, 16).expand(2, -1, -1), angles_of),
        ((2, 4, 8), ids(2, 4, 8, 1), angles_of),
        ((4, 16), ids(4, 16).T.expand(2, -1, -1), lambda t: angles_of(t.transpose(1, 2))),
        (
            (4, 16),
            ids(4, 16).T[None, :, :, None].expand(2, -1, -1, 2) * 0.25,
            lambda t: angles_of(t[..., 0].transpose(1, 2) * 4),
        ),
    ],
    ids=["N k", "1 N k", "B N k", "N 4", "B k N", "intervals"],
)
def test_coordinates_that_are_an_input(sides: tuple[int, ...], given: Tensor, read: Table) -> None:
    """The order is computed in the graph, so that other coordinates need no new one."""
    model = Rotary(read)
    x = torch.randn(2, 64, CHANNELS)
    run = merged(model, x, given.float(), **TILES)
    assert run.region.status == "merged", run.region.reason
    plainly = merged(Rotary(angles_of), x, ids(*sides).float(), **TILES)
    assert plainly.region.status == "merged"
    unranked = merged(model, x, given.float(), order="stripe")
    assert relative_error(run.output, plainly.output) < 1e-3 * relative_error(
        unranked.output, plainly.output
    )


def test_coordinates_in_any_unit_are_ranked() -> None:
    seconds = ids(3, 4, 5).T.float()[None] * torch.tensor([0.04, 32.0, 32.0])[:, None] + 7
    assert torch.equal(coordinate_rows(seconds, 2, 1, 0, 60), ids(3, 4, 5))
    part = coordinate_rows(seconds, 2, 1, 20, 20)
    assert torch.equal(part, ids(3, 4, 5)[20:40] - torch.tensor([1, 0, 0]))


def test_volumes_from_coordinates() -> None:
    """Frames are the first column; tiles of the grid where they divide it."""
    found = order_from_positions(ids(4, 4, 6), (2, 2, 3), "tile", curve_table())
    assert torch.equal(found, tile_order((4, 4, 6), (2, 2, 3)))
    flat = order_from_positions(ids(4, 6), (2, 2, 3), "tile", curve_table())
    assert torch.equal(flat, tile_order((4, 6), (1, 2, 3)))


def test_a_table_without_sides_tells_nothing() -> None:
    x = torch.randn(1, 64, CHANNELS)
    run = merged(Rotary(lambda: torch.arange(64 * HEAD).view(64, HEAD).sin()), x, **TILES)
    assert "the grid of the 64 tokens is not in the graph" in run.region.reason
    assert run.untouched
