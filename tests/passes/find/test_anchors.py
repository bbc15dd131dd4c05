"""Which hidden states begin a region, and of what kind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers import (
    CHANNELS,
    Attention,
    Cross,
    Joint,
    Run,
    Sequence,
    assert_exact,
    attend,
    join_heads,
    merged,
    repeated_tokens,
    split_heads,
)

TEXT = torch.randn(2, 7, CHANNELS)


class Free(nn.Module):
    """A norm, six linears, and a function over them."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.norm, self.other_norm = nn.LayerNorm(CHANNELS), nn.LayerNorm(CHANNELS)
        self.a, self.b, self.c, self.d, self.e, self.f = (
            nn.Linear(CHANNELS, CHANNELS) for _ in range(6)
        )
        self.wide, self.down = nn.Linear(CHANNELS, 32), nn.Linear(CHANNELS, 4)
        self.up = nn.Linear(4, CHANNELS)

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        return self.function(self, x, *others)


def feed_forward(m: Free, x: Tensor) -> Tensor:
    return x + m.b(F.gelu(m.a(m.norm(x))))


def gated_feed_forward(m: Free, x: Tensor) -> Tensor:
    n = m.norm(x)
    return x + m.c(F.silu(m.a(n)) * m.b(n))


def chunked_feed_forward(m: Free, x: Tensor) -> Tensor:
    hidden, gate = m.wide(m.norm(x)).chunk(2, -1)
    return x + m.b(hidden * F.gelu(gate))


def attention(m: Free, x: Tensor) -> Tensor:
    n = m.norm(x)
    return x + m.d(attend(m.a(n), m.b(n), m.c(n)))


def attention_with_normed_queries(m: Free, x: Tensor) -> Tensor:
    n = m.norm(x)
    q, k = (F.rms_norm(split_heads(part(n)), (CHANNELS // 2,)) for part in (m.a, m.b))
    return x + m.d(join_heads(F.scaled_dot_product_attention(q, k, split_heads(m.c(n)))))


def attention_normed_across_heads(m: Free, x: Tensor) -> Tensor:
    n = m.norm(x)
    q, k = (F.rms_norm(part(n), (CHANNELS,)) for part in (m.a, m.b))
    return x + m.d(attend(q, k, m.c(n)))


def fused_attention(m: Free, x: Tensor) -> Tensor:
    q, kv = m.a(m.norm(x)), m.wide(m.norm(x)).chunk(2, -1)
    return x + m.d(attend(q, *kv))


def adapted_attention(m: Free, x: Tensor) -> Tensor:
    """A low-rank adapter beside the query's projection."""
    n = m.norm(x)
    query = m.a(n) + 0.5 * m.up(m.down(n))
    return x + m.d(attend(query, m.b(n), m.c(n)))


def parallel(m: Free, x: Tensor) -> Tensor:
    n = m.norm(x)
    return x + m.d(attend(m.a(n), m.b(n), m.c(n))) + m.f(F.gelu(m.e(n)))


def fused_parallel(m: Free, x: Tensor) -> Tensor:
    n = m.norm(x)
    inner = attend(m.a(n), m.b(n), m.c(n))
    return x + F.linear(torch.cat((inner, F.gelu(m.e(n))), -1), m.wide.weight.t())


def parallel_in_one_sum(m: Free, x: Tensor) -> Tensor:
    n = m.norm(x)
    return (attend(m.a(n), m.b(n), m.c(n)) + m.f(F.gelu(m.e(n)))) + x


def cast_before_linears(m: Free, x: Tensor) -> Tensor:
    n = m.norm(x).double().float()
    return x + m.b(F.gelu(m.a(n.contiguous())))


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (feed_forward, "feed_forward"),
        (gated_feed_forward, "feed_forward"),
        (chunked_feed_forward, "feed_forward"),
        (cast_before_linears, "feed_forward"),
        (attention, "self_attention"),
        (attention_with_normed_queries, "self_attention"),
        (attention_normed_across_heads, "self_attention"),
        (adapted_attention, "self_attention"),
        (parallel, "parallel"),
        (fused_parallel, "parallel"),
        (parallel_in_one_sum, "parallel"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_kinds(function: Callable[..., Tensor], kind: str) -> None:
    run = assert_exact(Free(function), repeated_tokens(2, 64))
    assert [(region.kind, region.status) for region in run.report.regions] == [(kind, "merged")]


def test_separate_norms_of_queries_and_keys() -> None:
    """Queries alone are merged where keys come from another normalised copy of the stream."""
    run = assert_exact(Free(fused_attention), repeated_tokens(2, 64))
    assert run.region.kind == "cross_attention"


def test_kinds_with_text() -> None:
    x = repeated_tokens(2, 64)
    assert assert_exact(Cross(), x, TEXT).region.kind == "cross_attention"
    assert [r.kind for r in merged(Joint(), x, TEXT).report.regions] == ["joint_attention"]


def both_attentions(m: Free, x: Tensor, text: Tensor) -> Tensor:
    n = m.norm(x)
    q = m.a(n)
    return x + m.d(attend(q, m.b(n), m.c(n))) + m.f(attend(q, m.e(text), text))


def two_texts(m: Free, x: Tensor, text: Tensor) -> Tensor:
    """Words and a picture prompt, each with keys of its own (IP-Adapter)."""
    q = m.a(m.norm(x))
    words, picture = text.split([3, 4], 1)
    inner = attend(q, m.b(words), m.c(words)) + 0.5 * attend(q, m.e(picture), m.f(picture))
    return x + m.d(inner)


@pytest.mark.parametrize(
    ("function", "kind"), [(both_attentions, "self_attention"), (two_texts, "cross_attention")]
)
def test_one_query_for_two_attentions(function: Callable[..., Tensor], kind: str) -> None:
    run = assert_exact(Free(function), repeated_tokens(2, 64), TEXT)
    assert run.region.kind == kind


def paths(run: Run) -> list[str]:
    return [region.module_path for region in run.report.regions]


def test_regions_carry_the_path_of_their_module_in_graph_order() -> None:
    run = merged(Sequence(Attention(), Free(feed_forward), Free(attention)), repeated_tokens(2, 64))
    assert paths(run) == ["blocks.0", "blocks.1", "blocks.2"]
    assert [region.kind for region in run.report.regions] == [
        "self_attention",
        "feed_forward",
        "self_attention",
    ]


def test_a_norm_over_channels_begins_another_region() -> None:
    """One stream through two feed-forwards: no linear is counted twice."""
    run = assert_exact(Sequence(Free(feed_forward), Free(feed_forward)), repeated_tokens(2, 64))
    assert paths(run) == ["blocks.0", "blocks.1"]


def test_linears_on_text_alone_and_on_vectors_are_no_regions() -> None:
    def function(m: Free, x: Tensor, text: Tensor) -> Tensor:
        shift = m.b(F.silu(m.a(text.mean(1)))).unsqueeze(1)
        return x + shift + m.norm(x)

    run = merged(Free(function), repeated_tokens(2, 64), TEXT)
    assert not run.report.regions
    assert run.untouched


def test_a_projection_before_a_block_is_no_region() -> None:
    def function(m: Free, x: Tensor) -> Tensor:
        return feed_forward(m, m.c(m.other_norm(x)))

    run = assert_exact(Free(function), repeated_tokens(2, 64))
    assert len(run.report.regions) == 1


def test_an_attention_without_projections_is_reported() -> None:
    def function(m: Free, x: Tensor) -> Tensor:
        n = m.norm(x)
        return x + m.a(attend(n, n, n))

    run = merged(Free(function), repeated_tokens(2, 64))
    reasons = [region.reason for region in run.report.regions]
    assert any("no linear projection of hidden states feeds" in reason for reason in reasons)


@pytest.mark.xfail(strict=True, reason="a norm in the middle hides the second linear")
def test_a_feed_forward_with_a_norm_in_its_middle() -> None:
    def function(m: Free, x: Tensor) -> Tensor:
        return x + m.b(m.other_norm(F.gelu(m.a(m.norm(x)))))

    run = assert_exact(Free(function), repeated_tokens(2, 64))
    assert run.region.kind == "feed_forward"


def test_three_linears_in_a_row_are_one_region() -> None:
    def function(m: Free, x: Tensor) -> Tensor:
        return x + m.c(F.gelu(m.b(F.gelu(m.a(m.norm(x))))))

    run = assert_exact(Free(function), repeated_tokens(2, 64))
    assert [region.status for region in run.report.regions] == ["merged"]
