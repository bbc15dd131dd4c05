"""What cannot be cut evenly, or not on a CPU: the plain model fails, or all ranks refuse."""

from __future__ import annotations

import pytest
import torch

from tests.parallel.ranks import Results

pytestmark = pytest.mark.xdist_group("ranks")


@pytest.fixture
def refused(quick: list[Results]) -> list[Results]:
    return [found["refused"] for found in quick]


def test_an_uneven_shard_is_refused_by_every_rank(refused: list[Results]) -> None:
    """And the group goes on: nobody waits for anybody."""
    reasons = {tuple(found["reasons"]) for found in refused}
    assert len(reasons) == 1
    assert "ranks exchange unequal shares" in reasons.pop()[0]
    for found in refused:
        assert torch.equal(*found["lower"])
        assert "must be divisible by mesh size" in found["plain"]
        assert found["merged"]


def test_diffusers_ways_around_do_not_compile(refused: list[Results]) -> None:
    """If one does some day, it has to be merged as well, or be refused by a test of its own."""
    for found in refused:
        assert found["cut anyhow"] == ""
        assert "fake tensor" in found["cut anyhow and compiled"]
        assert "does not support return_lse" in found["ring"]
        assert "_scaled_dot_product_flash_attention" in found["ring by flash"]


def test_a_mask_of_the_text_of_ltx_does_not_run_sharded(refused: list[Results]) -> None:
    """The mask is that of all heads, of which a rank has a part."""
    for found in refused:
        assert found["ltx with a mask"].startswith("RuntimeError"), found["ltx with a mask"]
