"""Attention on merged tokens: masks, text, grouped heads, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers import (
    CHANNELS,
    HEADS,
    SMALL,
    Attention,
    Cross,
    HandMerge,
    assert_exact,
    assert_harmless,
    assert_untouched,
    attend,
    join_heads,
    merged,
    relative_error,
    repeated_tokens,
    split_heads,
    token_sequence,
)
from toma_fx import TomaConfig

TOKENS = 24
GRID = (4, 6)
WORDS = 5


def masked(block: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return attend(q, k, v, attn_mask=mask)


def by_hand(
    model: Attention,
    x: Tensor,
    mask: Tensor,
    gathered: tuple[int, ...],
    context: Tensor | None = None,
) -> Tensor:
    """The merged attention, its mask read at the destinations along the axes `gathered`."""
    config = TomaConfig(**{**SMALL, "order": "tile", "grid": GRID})
    sequence, size = token_sequence("tile", GRID, config.window)
    with torch.no_grad():
        hidden = model.norm(x)
        hand = HandMerge(hidden, sequence, config, size)
        short = hand.merge(hidden)
        source = short if context is None else context
        mask = mask.view((1,) * (4 - mask.dim()) + mask.shape)
        for axis in gathered:
            mask = hand.gather(mask, axis, 0)
        inner = attend(model.query(short), model.key(source), model.value(source), attn_mask=mask)
        return x + hand.unmerge(model.out(inner))


def random_mask(sizes: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    if dtype == torch.bool:
        allowed = torch.rand(sizes, generator=generator) > 0.4
        allowed[..., 0] = True  # a row of nothing but False has no softmax
        return allowed
    return torch.randn(sizes, generator=generator)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32], ids=["bool", "float"])
@pytest.mark.parametrize(
    ("sizes", "gathered"),
    [
        ((2, 1, 1, TOKENS), (3,)),
        ((2, 1, TOKENS, TOKENS), (2, 3)),
        ((1, HEADS, TOKENS, TOKENS), (2, 3)),
        ((2, HEADS, TOKENS, 1), (2,)),
        ((TOKENS, TOKENS), (2, 3)),
        ((HEADS, TOKENS, TOKENS), (2, 3)),
        ((1, TOKENS), (3,)),
        ((2, 1, 1, 1), ()),
    ],
    ids=str,
)
def test_masks_are_read_at_the_destinations(
    sizes: tuple[int, ...], gathered: tuple[int, ...], dtype: torch.dtype
) -> None:
    model = Attention(masked)
    x, mask = torch.randn(2, TOKENS, CHANNELS), random_mask(sizes, dtype)
    if sizes[-1] == 1 and dtype == torch.bool:
        mask = torch.ones_like(mask)
    run = merged(model, x, mask, order="tile", grid=GRID)
    assert run.region.status == "merged", run.region.reason
    assert relative_error(run.output, by_hand(model, x, mask, gathered)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32], ids=["bool", "float"])
@pytest.mark.parametrize(
    ("sizes", "gathered"),
    [
        ((2, 1, 1, WORDS), ()),
        ((2, 1, TOKENS, WORDS), (2,)),
        ((TOKENS, WORDS), (2,)),
    ],
    ids=str,
)
def test_masks_over_text_keep_the_words(
    sizes: tuple[int, ...], gathered: tuple[int, ...], dtype: torch.dtype
) -> None:
    model = Cross(masked)
    x, text = torch.randn(2, TOKENS, CHANNELS), torch.randn(2, WORDS, CHANNELS)
    mask = random_mask(sizes, dtype)
    run = merged(model, x, text, mask, order="tile", grid=GRID)
    assert (run.region.kind, run.region.status) == ("cross_attention", "merged")
    wanted = by_hand(model.attention, x, mask, gathered, text)
    assert relative_error(run.output, wanted) < 1e-5


def test_as_many_words_as_tokens_do_not_merge() -> None:
    """A mask over the words is not read at the destinations, although its size is the picture's."""
    model = Cross(masked)
    x, text = torch.randn(2, TOKENS, CHANNELS), torch.randn(2, TOKENS, CHANNELS)
    mask = random_mask((2, 1, 1, TOKENS), torch.bool)
    run = merged(model, x, text, mask, order="tile", grid=GRID)
    assert run.region.status == "merged"
    assert relative_error(run.output, by_hand(model.attention, x, mask, (), text)) < 1e-5


def test_a_mask_of_activations_is_refused() -> None:
    def inner(block: Attention, q: Tensor, k: Tensor, v: Tensor, other: Tensor) -> Tensor:
        return attend(q, k, v, attn_mask=block.out(other).mean(-1)[:, None, None] > 0)

    assert_untouched(
        Attention(inner),
        repeated_tokens(2, 64),
        torch.randn(2, 64, CHANNELS),
        reason="the attention mask depends on activations",
    )


def test_a_mask_of_the_merged_tokens_themselves_is_refused() -> None:
    def inner(block: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, attn_mask=k.mean(-1)[:, None, None])

    assert_untouched(
        Attention(inner), repeated_tokens(2, 64), reason="the attention mask depends on activations"
    )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"is_causal": True}, "causal attention depends on the order of tokens"),
        ({"dropout_p": 0.1}, "attention dropout is active: call model.eval()"),
    ],
)
def test_causal_and_dropping_attention_is_refused(options: dict[str, float], reason: str) -> None:
    inner = lambda b, q, k, v: attend(q, k, v, **options)  # noqa: E731
    assert_untouched(Attention(inner), repeated_tokens(2, 64), reason=reason)


def grouped(block: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    few = [split_heads(part[..., :8], 2) for part in (k, v)]
    result = F.scaled_dot_product_attention(split_heads(q, 4), *few, enable_gqa=True)
    return join_heads(result)


def repeated_heads(block: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    few = [split_heads(part[..., :8], 2).repeat_interleave(2, dim=1) for part in (k, v)]
    return join_heads(F.scaled_dot_product_attention(split_heads(q, 4), *few))


def expanded_heads(block: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    few = [split_heads(part[..., :8], 2).unsqueeze(2) for part in (k, v)]
    many = [part.expand(-1, -1, 2, -1, -1).flatten(1, 2) for part in few]
    return join_heads(F.scaled_dot_product_attention(split_heads(q, 4), *many))


def scaled(block: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q, k, v, scale=0.1)


def one_head(block: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def shared_value(block: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q, k, k)


def one_for_all(block: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(v, v, v)


def twice(block: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q, k, v) + attend(k, v, q).sin()


@pytest.mark.parametrize(
    "inner",
    [grouped, repeated_heads, expanded_heads, scaled, one_head, shared_value, one_for_all, twice],
    ids=lambda inner: inner.__name__,
)
@pytest.mark.parametrize(("batch", "tokens"), [(2, 64), (1, 16), (4, 4)])
def test_variants_of_attention(inner: Callable[..., Tensor], batch: int, tokens: int) -> None:
    run = assert_exact(Attention(inner), repeated_tokens(batch, tokens))
    assert run.region.kind == "self_attention"


def test_queries_of_another_item() -> None:
    inner = lambda b, q, k, v: attend(torch.stack((q[1], q[0])), k, v)  # noqa: E731
    assert_harmless(Attention(inner), repeated_tokens(2, 64))


def test_attention_along_channels_is_refused() -> None:
    inner = lambda b, q, k, v: F.scaled_dot_product_attention(  # noqa: E731
        *(part.transpose(1, 2) for part in (q, k, v))
    ).transpose(1, 2)
    assert_untouched(
        Attention(inner), repeated_tokens(2, 64), reason="along another axis than the tokens"
    )


def test_attention_over_items_as_channels() -> None:
    def inner(block: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        sides = (part.permute(2, 1, 0) for part in (q, k, v))
        return F.scaled_dot_product_attention(*sides).permute(2, 1, 0)

    assert_harmless(Attention(inner), repeated_tokens(2, 64))


def test_keys_of_one_region_and_values_of_another_are_refused() -> None:
    class Crossed(nn.Module):
        """Two normalised copies of the stream feed one attention."""

        def __init__(self) -> None:
            super().__init__()
            self.attention = Attention()
            self.norm = nn.LayerNorm(CHANNELS)

        def forward(self, x: Tensor) -> Tensor:
            a, one, two = self.attention, self.attention.norm(x), self.norm(x) * 2
            return x + a.out(attend(a.query(one), a.key(one), a.value(two)))

    assert_untouched(
        Crossed(), repeated_tokens(2, 64), reason="keys and values carry tokens differently"
    )


def test_keys_of_a_picture_of_another_resolution_stay() -> None:
    class Coarse(Attention):
        """Attends to a picture pooled to a quarter of its tokens."""

        def forward(self, picture: Tensor) -> Tensor:  # type: ignore[override]
            x = picture.flatten(2).transpose(1, 2)
            coarse = F.avg_pool2d(picture, 2).flatten(2).transpose(1, 2)
            hidden = self.norm(x)
            inner = attend(self.query(hidden), self.key(coarse), self.value(coarse))
            return (x + self.out(inner)).transpose(1, 2).unflatten(2, picture.shape[2:])

    picture = repeated_tokens(2, 64).transpose(1, 2).unflatten(2, (8, 8))
    run = assert_exact(Coarse(), picture)
    assert (run.region.kind, run.region.tokens) == ("cross_attention", 64)
