"""`enable_parallelism`, then `apply(pipe)`: pictures of a pipeline that every rank draws."""

from __future__ import annotations

import pytest
import torch

from tests.eager_merge import relative
from tests.parallel.ranks import Results

pytestmark = pytest.mark.xdist_group("ranks")


@pytest.fixture
def drawn(quick: list[Results]) -> list[Results]:
    return [found["pictures"] for found in quick]


def test_all_ranks_draw_the_same_pictures(drawn: list[Results]) -> None:
    first, *others = drawn
    for key in ("sharded", ("merged", 0.0), ("merged", 0.5)):
        for other in others:
            assert all(map(torch.equal, first[key], other[key])), key


def test_ratio_zero_draws_plain_pictures(drawn: list[Results]) -> None:
    first = drawn[0]
    for plain, sharded, zero in zip(
        first["plain"], first["sharded"], first["merged", 0.0], strict=True
    ):
        assert relative(sharded, plain) < 1e-5
        assert relative(zero, sharded) < 1e-6


def test_merged_pictures_are_those_of_one_process(drawn: list[Results]) -> None:
    """Its windows are those of each rank, whose rows they divide."""
    first = drawn[0]
    for picture, alone, plain in zip(
        first["merged", 0.5], first["alone"], first["plain"], strict=True
    ):
        assert relative(picture, alone) < 1e-4
        assert relative(picture, plain) > 1e-3
