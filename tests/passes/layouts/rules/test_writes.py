"""Writes that are values: across tokens they pass, along them they keep to the borders."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.helpers import (
    CHANNELS,
    Attention,
    Block,
    Joint,
    assert_exact,
    assert_untouched,
    attend,
    join_heads,
    merged,
    relative_error,
    repeated_tokens,
    rotary,
    split_heads,
)

Body = Callable[..., Tensor]
HALF = CHANNELS // 2


def by_stride(h: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotary embeddings as Wan writes them: even and odd channels into an empty tensor."""
    left, right = h.unflatten(-1, (-1, 2)).unbind(-1)
    out = torch.empty_like(h)
    out[..., 0::2] = left * cosines[..., 0::2] - right * sines[..., 1::2]
    out[..., 1::2] = left * sines[..., 1::2] + right * cosines[..., 0::2]
    return out.type_as(h)


def filled(block: Block, h: Tensor) -> Tensor:
    out = torch.zeros(h.shape)
    out[..., :HALF] = h[..., HALF:]
    out[..., -1] = 3
    out[..., HALF] += h[..., 0]
    return out


def swapped(block: Block, h: Tensor) -> Tensor:
    out = h.new_empty(h.shape)
    out[..., :HALF], out[..., HALF:] = h[..., HALF:], h[..., :HALF]
    return out


def doubled(block: Block, h: Tensor) -> Tensor:
    h[..., :4] *= 2
    h[:, :, 4].neg_()
    return h.add_(1)


@pytest.mark.parametrize(("batch", "tokens"), [(2, 64), (1, 64), (4, 4), (16, 16)])
@pytest.mark.parametrize(
    "body",
    [
        filled,
        swapped,
        doubled,
        lambda b, h: h.transpose(1, 2).clone().mul_(2).transpose(1, 2),
        lambda b, h: torch.full_like(h, 2).mul_(h),
        lambda b, h: h.masked_fill_(torch.arange(CHANNELS) > 5, 0.5),
        lambda b, h: torch.ones_like(h).copy_(h.mean(-1, keepdim=True)),
    ],
    ids=["zeros", "halves", "itself", "transposed", "like", "filled", "broadcast"],
)
def test_writes_across_tokens_pass(body: Body, batch: int, tokens: int) -> None:
    assert_exact(Block(body), repeated_tokens(batch, tokens))


@pytest.mark.parametrize("batch", [1, 2])
def test_rotary_embeddings_written_by_stride(batch: int) -> None:
    """Constant within each pair of equal tokens, so that merging loses nothing."""
    x = repeated_tokens(batch, 64)
    angles = x[..., :1] * torch.arange(1, HALF + 1)
    tables = [part.repeat_interleave(2, -1)[..., :HALF] for part in (angles.cos(), angles.sin())]

    def inner(block: Attention, q: Tensor, k: Tensor, v: Tensor, *given: Tensor) -> Tensor:
        q, k = (by_stride(split_heads(part), *(t[:, None] for t in given)) for part in (q, k))
        result = torch.nn.functional.scaled_dot_product_attention(q, k, split_heads(v))
        return join_heads(result)

    run = assert_exact(Attention(inner), x, *tables)
    assert run.region.kind == "self_attention"


def test_a_table_is_read_where_it_is_written_into() -> None:
    cosines, _ = rotary(64, CHANNELS)

    def body(block: Block, h: Tensor, table: Tensor) -> Tensor:
        out = torch.empty_like(h)
        out[..., :HALF] = table[:, :HALF] * h[..., :HALF]
        out[..., HALF:] = h[..., HALF:]
        return out

    model, x = Block(body), torch.randn(2, 64, CHANNELS)
    product = Block(lambda b, h, t: torch.cat((t[:, :HALF] * h[..., :HALF], h[..., HALF:]), -1))
    assert relative_error(merged(model, x, cosines).output, merged(product, x, cosines).output) == 0


class Rotated(Joint):
    """Text and picture are joined, then the picture's part is written over; None does neither."""

    def __init__(self, joins: bool | None) -> None:
        super().__init__()
        self.joins = joins

    def forward(self, x: Tensor, text: Tensor) -> Tensor:  # type: ignore[override]
        length = text.shape[1]
        parts, hidden, others = [], self.norm(x), self.text_norm(text)
        for ours, theirs in zip(self.projections[:3], self.projections[3:], strict=True):
            words, picture = theirs(others), ours(hidden)
            if self.joins:
                both = torch.zeros(x.shape[0], length + x.shape[1], CHANNELS)
                both[:, :length], both[:, length:] = words, picture
            else:
                both = torch.cat((words, picture), 1)
            both[:, length:] = both[:, length:].cos()
            parts.append(torch.cat((words, picture.cos()), 1) if self.joins is None else both)
        both = attend(*parts)
        return x + self.out(both[:, length:])


@pytest.mark.parametrize("joins", [True, False], ids=["written", "joined"])
def test_writes_along_tokens_that_keep_to_the_borders(joins: bool) -> None:
    """Merged as the same block is that neither joins nor changes by writing."""
    x, text = torch.randn(2, 64, CHANNELS), torch.randn(2, 7, CHANNELS)
    run = merged(Rotated(joins), x, text, grid=(8, 8))
    assert [region.kind for region in run.report.merged] == ["joint_attention"]
    wanted = merged(Rotated(None), x, text, grid=(8, 8))
    assert len(wanted.report.merged) == 1
    assert relative_error(run.output, wanted.output) == 0


def beyond(block: Block, h: Tensor, *others: Tensor) -> Tensor:
    h = h * 1.5
    h[:, 5:] = h[:, 5:].sin()
    return h


def one_item(block: Block, h: Tensor) -> Tensor:
    h = h * 1.5
    h[0] = h[0].sin()
    return h


def every_other(block: Block, h: Tensor) -> Tensor:
    h = h * 1.5
    h[:, ::2] = h[:, ::2].sin()
    return h


def single(block: Block, h: Tensor) -> Tensor:
    h = h * 1.5
    h[:, 3] = 0
    return h


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("body", [beyond, one_item, every_other, single])
def test_writes_that_tell_tokens_apart_are_refused(body: Body, batch: int) -> None:
    if body is one_item and batch == 1:
        assert_exact(Block(body), repeated_tokens(1, 64))
        return
    assert_untouched(Block(body), repeated_tokens(batch, 64), reason="aten.")


def test_a_control_signal_is_not_written_at_the_destinations() -> None:
    def body(block: Block, h: Tensor, control: Tensor) -> Tensor:
        out = torch.empty_like(h)
        out[..., :HALF], out[..., HALF:] = h[..., :HALF], block.extra(control)[..., HALF:]
        return out

    control = torch.randn(2, 64, CHANNELS)
    assert_untouched(Block(body), repeated_tokens(2, 64), control, reason="full-length tensor")


def test_text_may_be_written_over_too() -> None:
    class Masked(Rotated):
        def forward(self, x: Tensor, text: Tensor) -> Tensor:  # type: ignore[override]
            length = text.shape[1]
            parts, hidden, others = [], self.norm(x), self.text_norm(text)
            for ours, theirs in zip(self.projections[:3], self.projections[3:], strict=True):
                words = theirs(others)
                if not self.joins:
                    words = torch.cat((torch.zeros(2, 2, CHANNELS), words[:, 2:]), 1)
                both = torch.cat((words, ours(hidden)), 1)
                if self.joins:
                    both[:, :2] = 0
                parts.append(both)
            return x + self.out(attend(*parts)[:, length:])

    x, text = torch.randn(2, 64, CHANNELS), torch.randn(2, 7, CHANNELS)
    runs = [merged(Masked(joins), x, text, grid=(8, 8)) for joins in (True, False)]
    assert all(len(run.report.merged) == 1 for run in runs)
    assert relative_error(runs[0].output, runs[1].output) == 0
