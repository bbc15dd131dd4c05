"""FLOPs of regions, counted by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers import CHANNELS, Attention, Cross, Joint, assert_untouched, merged

B, N, D, C, T = 2, 64, 32, CHANNELS, 7
SIZE = 4  # tokens a window


class FeedForward(nn.Module):
    def __init__(self, wide: int = 3 * C) -> None:
        super().__init__()
        self.norm, self.a, self.b = nn.LayerNorm(C), nn.Linear(C, wide), nn.Linear(wide, C)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(F.gelu(self.a(self.norm(x))))


# Merge and unmerge are products of D × SIZE and SIZE × D with C channels.
MERGES = 2 * (2 * B * D * SIZE * C)


def linear(tokens: int, inside: int = C, outside: int = C) -> int:
    return 2 * B * tokens * inside * outside


def attention(queries: int, keys: int) -> int:
    return 2 * 2 * B * queries * keys * C


def test_a_feed_forward() -> None:
    region = merged(FeedForward(), torch.randn(B, N, C)).region
    assert region.flops_before == 2 * linear(N, C, 3 * C)
    assert region.flops_after == 2 * linear(D, C, 3 * C) + MERGES


def test_a_self_attention() -> None:
    region = merged(Attention(), torch.randn(B, N, C)).region
    assert region.flops_before == 4 * linear(N) + attention(N, N)
    assert region.flops_after == 4 * linear(D) + attention(D, D) + MERGES


def test_a_cross_attention_counts_what_merging_changes() -> None:
    """Projections of the text are outside of the region."""
    region = merged(Cross(), torch.randn(B, N, C), torch.randn(B, T, C)).region
    assert region.flops_before == 2 * linear(N) + attention(N, T)
    assert region.flops_after == 2 * linear(D) + attention(D, T) + MERGES


def test_a_joint_attention_shrinks_by_its_picture_alone() -> None:
    region = merged(Joint(), torch.randn(B, N, C), torch.randn(B, T, C)).region
    saved = 4 * (linear(N) - linear(D)) + attention(N + T, N + T) - attention(D + T, D + T)
    assert region.flops_before - region.flops_after == pytest.approx(saved - MERGES, abs=8)


def test_a_refused_region_saves_nothing() -> None:
    run = assert_untouched(
        Attention(lambda b, q, k, v: q.roll(1, 1)), torch.randn(B, N, C), reason=""
    )
    for region in run.report.regions:
        assert region.flops_before == region.flops_after
        assert region.merged_tokens == region.tokens


def test_a_skipped_region_saves_nothing_but_is_counted() -> None:
    region = merged(FeedForward(), torch.randn(B, N, C), min_tokens=N + 1).region
    assert region.flops_before == region.flops_after == 2 * linear(N, C, 3 * C)
    assert region.group is None


def test_two_exits_are_two_unmerges() -> None:
    class Two(FeedForward):
        def forward(self, x: Tensor) -> Tensor:
            hidden = F.gelu(self.a(self.norm(x)))
            return x + self.b(hidden) + 2 * self.b(hidden)

    region = merged(Two(), torch.randn(B, N, C)).region
    wide = linear(D, C, 3 * C)
    assert region.flops_after == 3 * wide + MERGES + MERGES // 2
