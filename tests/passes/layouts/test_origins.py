"""The tokens of a rank: a run of a grid's, in rows of its own where it cuts none."""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.helpers import Block, Sequence, merged
from toma_fx.passes.layouts.origins import whole_rows


@given(
    frames=st.integers(1, 4),
    height=st.integers(1, 12),
    width=st.integers(1, 6),
    ranks=st.integers(1, 4),
)
def test_the_grid_of_a_ranks_rows(frames: int, height: int, width: int, ranks: int) -> None:
    """Frames of it hold rows of one frame, and all ranks have the same grid."""
    tokens = frames * height * width
    if tokens % ranks:
        return
    own = tokens // ranks
    grids = {whole_rows((frames, height, width), r * own, own) for r in range(ranks)}
    assert len(grids) == 1
    grid = grids.pop()
    assert (grid is None) == bool(own % width)
    if grid is not None:
        assert math.prod(grid) == own
        assert grid[2] == width
        assert height % grid[1] == 0


class Shard(nn.Module):
    """A picture `[1, C, H, W]` of which blocks see the tokens `first … last`, as on a rank."""

    def __init__(self, first: int, last: int) -> None:
        super().__init__()
        self.first, self.last = first, last
        self.blocks = Sequence(Block())

    def forward(self, picture: Tensor) -> Tensor:
        tokens = picture.flatten(2).transpose(1, 2)
        return self.blocks(tokens[:, self.first : self.last])


def noted(sides: tuple[int, int], first: int, last: int, **options: Any) -> tuple[str, int]:
    """The reason or remark of the region that a shard merges, and how many tokens are left."""
    picture = torch.randn(1, 16, *sides)
    run = merged(Shard(first, last), picture, order="tile", window=4, **options)
    assert run.region.status == "merged", str(run.report)
    return run.region.reason, run.region.merged_tokens


def test_windows_are_tiles_of_the_rows_of_a_rank() -> None:
    """Rows 4 … 7 of a picture: three windows of 4 × 4, none of which reaches beyond."""
    assert noted((12, 12), 48, 96) == ("", 24)


def test_a_shard_within_a_row_has_windows_along_the_places_of_its_tokens() -> None:
    """Tokens 50 … 99 of rows of 12: four windows of 12 or 13, of which seven stay each."""
    assert noted((12, 12), 50, 100) == ("", 28)


def test_places_of_a_shard_within_a_row_are_those_in_sequence() -> None:
    """Where tokens remember, their neighbours are those before and behind them."""

    class Timed(Shard):
        def __init__(self) -> None:
            super().__init__(50, 100)
            self.clock = nn.Linear(8, 16)

        def forward(self, picture: Tensor, timestep: Tensor) -> Tensor:  # type: ignore[override]
            angle = timestep.reshape(-1, 1) * 10.0 ** -torch.arange(4)
            clock = self.clock(torch.cat((angle.sin(), angle.cos()), -1))
            return super().forward(picture + clock.reshape(1, 16, 1, 1))

    given = torch.randn(1, 16, 12, 12), torch.tensor([9.0])
    run = merged(Timed(), *given, method="refresh", order="tile")
    assert (run.region.status, run.region.merged_tokens) == ("merged", 25)
    assert "no whole rows of the grid" in run.region.reason
