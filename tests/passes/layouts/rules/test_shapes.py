"""Views follow the token axis; what folds, cuts or mixes it is refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers import (
    CHANNELS,
    Attention,
    Block,
    assert_exact,
    assert_harmless,
    assert_untouched,
    attend,
    join_heads,
    repeated_tokens,
    split_heads,
)
from toma_fx.passes.layouts.rules.shapes import follow

Body = Callable[..., Tensor]


def regroupings(sizes: list[int]) -> st.SearchStrategy[tuple[int, ...]]:
    """Other shapes with as many elements: prime factors in order, cut anew."""
    factors = [p for size in sizes for p in _primes(size)] or [1]

    def regroup(cuts: list[bool]) -> tuple[int, ...]:
        shape = [1]
        for factor, cut in zip(factors, cuts, strict=True):
            if cut:
                shape.append(factor)
            else:
                shape[-1] *= factor
        return tuple(shape)

    return st.lists(st.booleans(), min_size=len(factors), max_size=len(factors)).map(regroup)


def _primes(size: int) -> list[int]:
    found = []
    for prime in (2, 3, 5, 7):
        while size % prime == 0:
            found.append(prime)
            size //= prime
    return found


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.data())
def test_follow_finds_the_axis_that_counts_the_same(data: st.DataObject) -> None:
    """Compared with where each element really goes."""
    sizes = data.draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4))
    result = data.draw(regroupings(sizes))
    axis = data.draw(st.integers(0, len(sizes) - 1))
    if sizes[axis] == 1:
        return  # every axis of size one counts the same
    shape = [1] * len(sizes)
    shape[axis] = -1
    marks = torch.arange(sizes[axis]).view(shape).expand(sizes).reshape(result)
    true = [
        index
        for index, size in enumerate(result)
        if size == sizes[axis]
        and torch.equal(
            marks,
            torch.arange(size)
            .view([-1 if i == index else 1 for i in range(len(result))])
            .expand(result),
        )
    ]
    assert follow(sizes, result, axis) == (true[0] if true else None)
    assert math.prod(result) == math.prod(sizes)


@pytest.mark.parametrize(
    "body",
    [
        lambda b, h: h.view(-1, h.shape[1], CHANNELS),
        lambda b, h: h.view(h.shape[0], -1, CHANNELS),
        lambda b, h: h.reshape(h.shape[0], h.shape[1], 1, CHANNELS).squeeze(2),
        lambda b, h: h.unsqueeze(0).squeeze((0,)),
        lambda b, h: h.unsqueeze(-1)[..., 0],
        lambda b, h: h.unflatten(2, (4, 4)).transpose(2, 3).flatten(2, 3),
        lambda b, h: h.permute(2, 1, 0).permute(-1, -2, -3),
        lambda b, h: h.swapaxes(1, 2).contiguous().swapaxes(-1, -2),
        lambda b, h: h.unsqueeze(2).expand(-1, h.shape[1], 3, -1).mean(2),
        lambda b, h: h.repeat_interleave(2, -1)[..., ::2],
        lambda b, h: h.repeat(1, 1, 2)[..., 3 : 3 + CHANNELS],
        lambda b, h: h.repeat(3, 1, 1, 1).mean(0),
        lambda b, h: torch.cat((h[:, :10], h[:, 10:]), 1).sin(),
        lambda b, h: torch.cat(h.split([4, h.shape[1] - 4], 1), 1).sin(),
        lambda b, h: torch.cat(h.chunk(2, 0), 0).sin(),
        lambda b, h: torch.stack(h.unbind(-1), -1),
        lambda b, h: torch.stack(h.chunk(2, 2), 1).transpose(1, 2).flatten(2),
        lambda b, h: h[:, :, 3:9].repeat_interleave(3, 2)[..., :CHANNELS],
        lambda b, h: h[:, :],
        lambda b, h: torch.cat(h.split(3, -1), -1),
        lambda b, h: h[..., 1:2].expand_as(h) + h,
    ],
)
@pytest.mark.parametrize(("batch", "tokens"), [(2, 64), (1, 64), (4, 4), (16, 16)])
def test_views_are_followed(body: Body, batch: int, tokens: int) -> None:
    assert_exact(Block(body), repeated_tokens(batch, tokens))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            lambda b, h: h.view(-1, CHANNELS).view(2, 64, -1),
            "aten.view.default folds the token axis",
        ),
        (lambda b, h: h.flatten(0, 1).view_as(h), "folds the token axis"),
        (lambda b, h: h.reshape(2, 32, -1).sin().view(2, 64, -1), "folds the token axis"),
        (lambda b, h: h.reshape(2, CHANNELS, 64).sin().view(2, 64, -1), "folds the token axis"),
        (lambda b, h: h.view(2, 8, 8, CHANNELS).flatten(1, 2), "folds the token axis"),
        (lambda b, h: torch.cat((h[:, 10:], h[:, :10]), 1), "cuts through merged tokens"),
        (lambda b, h: torch.cat(h.chunk(2, 1)[::-1], 1), "cuts through merged tokens"),
        (lambda b, h: torch.cat((*h.split([4, 60], 1),) * 2, 1)[:, :64], "cuts through merged"),
        (lambda b, h: h.repeat(1, 2, 1)[:, ::2], "aten.repeat.default repeats tokens"),
        (lambda b, h: h.repeat(2, 1, 1)[::2], "aten.repeat.default repeats tokens"),
        (lambda b, h: h[:, ::2].repeat_interleave(2, 1), "cuts through merged tokens"),
        (lambda b, h: h + h[:, 0].unsqueeze(1), "picks single tokens"),
        (lambda b, h: torch.stack(h.unbind(1), 1), "picks single tokens"),
        (lambda b, h: h.repeat_interleave(2, 1)[:, ::2], "aten.repeat_interleave.self_int"),
        (lambda b, h: torch.cat(h.chunk(2, 0)[::-1], 0), "cuts the batch"),
        (lambda b, h: h[:1] + h, "cuts the batch"),
    ],
)
def test_views_that_fold_cut_or_pick_tokens_are_refused(body: Body, reason: str) -> None:
    run = assert_untouched(Block(body), repeated_tokens(2, 64), reason=reason)
    assert run.region.status == "refused"


def test_a_square_reshape_that_is_no_transpose_is_refused() -> None:
    """With as many channels as tokens, `view(B, C, N)` keeps the shape but not the meaning."""
    body = lambda b, h: h.view(2, 4, 4, 16).transpose(2, 3).reshape(2, 16, 16)  # noqa: E731
    assert_harmless(Block(body), repeated_tokens(2, 16))


def test_heads_as_many_as_tokens() -> None:
    inner = lambda b, q, k, v: attend(q, k, v, heads=4)  # noqa: E731
    assert_exact(Attention(inner), repeated_tokens(4, 4))


def test_heads_folded_into_the_batch() -> None:
    def inner(block: Attention, *projected: Tensor) -> Tensor:
        folded = [split_heads(part).reshape(-1, part.shape[1], 8) for part in projected]
        result = torch.nn.functional.scaled_dot_product_attention(*folded)
        return join_heads(result.view(-1, 2, *result.shape[1:]))

    assert_exact(Attention(inner), repeated_tokens(1, 64))
    assert_untouched(Attention(inner), repeated_tokens(2, 64), reason="folds the batch")


def test_a_single_item_may_lose_its_batch_axis() -> None:
    body = lambda b, h: b.extra(h.squeeze(0)).sin().unsqueeze(0)  # noqa: E731
    assert_exact(Block(body), repeated_tokens(1, 64))


@pytest.mark.parametrize(
    "body",
    [
        lambda b, h: torch.stack((h[1], h[0])),
        lambda b, h: torch.cat((h[1].unsqueeze(0), h[0].unsqueeze(0))),
        lambda b, h: (lambda u, c: torch.stack((u + 3 * (c - u), c)))(*h.unbind(0)),
        lambda b, h: h[0].unsqueeze(0).expand(2, -1, -1),
        lambda b, h: h * h[0],
        lambda b, h: h.view(2, 64, 2, 8).transpose(0, 2).reshape(2, 64, CHANNELS),
    ],
    ids=["swapped", "swapped by cat", "guidance", "first item", "product", "heads for items"],
)
def test_items_do_not_meet(body: Body) -> None:
    """Slot `i` of two items holds different tokens once both are merged."""
    assert_harmless(Block(body), repeated_tokens(2, 64))


def test_keys_of_one_item_may_serve_all() -> None:
    """Attention does not ask which tokens its keys stand for (consistent characters)."""

    def inner(block: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (part[0].unsqueeze(0).expand(2, -1, -1) for part in (k, v))
        return attend(q, k, v)

    assert_harmless(Attention(inner), repeated_tokens(2, 64))
