"""Elementwise operations, casts and reductions: what passes, what is gathered, what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers import (
    CHANNELS,
    Block,
    assert_exact,
    assert_harmless,
    assert_untouched,
    merged,
    repeated_tokens,
)

Body = Callable[..., Tensor]


@pytest.mark.parametrize(
    ("batch", "tokens"),
    [(2, 64), (1, 64), (4, 4), (16, 16), (2, 16), (16, 4)],
    ids=lambda size: str(size),
)
@pytest.mark.parametrize(
    "body",
    [
        lambda b, h: h * torch.arange(CHANNELS),
        lambda b, h: h * torch.arange(h.shape[0]).view(-1, 1, 1),
        lambda b, h: h + torch.arange(h.shape[0] * CHANNELS).view(-1, 1, CHANNELS),
        lambda b, h: h * h.mean(-1)[..., None],
        lambda b, h: (h.transpose(1, 2) * torch.arange(CHANNELS)[:, None]).transpose(1, 2),
        lambda b, h: torch.where(h > 0, h, h.amax(-1, keepdim=True)),
        lambda b, h: h.masked_fill(torch.arange(CHANNELS) > 5, 0.5),
        lambda b, h: torch.lerp(h, h.square(), 0.25),
        lambda b, h: torch.clamp(h, min=h.mean(-1, keepdim=True)),
    ],
    ids=[
        "channel",
        "item",
        "item and channel",
        "mean",
        "transposed",
        "where",
        "fill",
        "lerp",
        "min",
    ],
)
def test_equal_sizes_do_not_confuse_axes(body: Body, batch: int, tokens: int) -> None:
    """As many items, or channels, as tokens: an operand meets the axis that it broadcasts to."""
    assert_exact(Block(body), repeated_tokens(batch, tokens))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (lambda b, h: h.softmax(1), "aten.softmax.int runs along the tokens"),
        (lambda b, h: h.log_softmax(-2), "aten.log_softmax.int runs along the tokens"),
        (lambda b, h: h.cumsum(1), "aten.cumsum.default runs along the tokens"),
        (lambda b, h: h - h.mean(1, keepdim=True), "aten.mean.dim reduces over the tokens"),
        (lambda b, h: h / h.sum((1, 2), keepdim=True), "reduces over the tokens"),
        (lambda b, h: h / h.norm(dim=1, keepdim=True), "reduces over the tokens"),
        (lambda b, h: h - h.amax(0, keepdim=True), "aten.amax.default reduces over the tokens"),
        (lambda b, h: h - h.mean(), "aten.mean.default"),
        (lambda b, h: h.mul_(h.mean(1, keepdim=True)), "aten.mean.dim reduces over the tokens"),
    ],
)
def test_operations_along_the_tokens_are_refused(body: Body, reason: str) -> None:
    run = assert_untouched(Block(body), repeated_tokens(2, 64), reason=reason)
    assert run.region.status == "refused"


class Kept(Block):
    """Writes into a tensor that is the model's own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.zeros(2, 64, CHANNELS))

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        self.kept.copy_(F.gelu(self.into(self.norm(x))))
        return x + self.out(self.kept)


def test_writes_into_the_models_own_tensors_are_refused() -> None:
    assert_untouched(Kept(), repeated_tokens(2, 64), reason="aten.copy_")


def test_active_dropout_is_refused_and_says_what_to_do() -> None:
    class Dropout(Block):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return x + F.dropout(self.out(F.gelu(self.into(self.norm(x)))), 0.5, self.training)

    model = Dropout()
    assert_untouched(model.train(), repeated_tokens(2, 64), reason="call model.eval()")
    assert_exact(model.eval(), repeated_tokens(2, 64))


def control_signals() -> list[object]:
    """Ways to let a full-length activation, a plain input of the model, into a region."""
    ways = {
        "added": lambda b, h, c: h + c,
        "added scaled": lambda b, h, c: torch.add(h, c, alpha=2),
        "added in front": lambda b, h, c: c + h,
        "projected": lambda b, h, c: h * b.extra(c),
        "projected then subtracted": lambda b, h, c: h - b.extra(c),
        "subtracted": lambda b, h, c: h - c,
        "blended": lambda b, h, c: torch.lerp(h, c, 0.5),
        "chosen": lambda b, h, c: torch.where(c > 0, h, c),
        "added and scaled": lambda b, h, c: torch.addcmul(h, c, c),
        "einsum": lambda b, h, c: h * torch.einsum("bnc,dc->bnd", c, b.extra.weight),
    }
    return [pytest.param(body, id=name) for name, body in ways.items()]


@pytest.mark.parametrize("body", control_signals())
def test_a_full_length_activation_is_not_read_at_the_destinations(body: Body) -> None:
    control = torch.randn(2, 64, CHANNELS)
    assert_untouched(
        Block(body), repeated_tokens(2, 64), control, reason="with a full-length activation"
    )


def test_noise_is_no_position_table() -> None:
    """Each token has to get noise of its own, not its destination's."""
    assert_untouched(
        Block(lambda b, h: h + torch.randn(64, CHANNELS)),
        repeated_tokens(2, 64),
        reason="full-length",
    )


@pytest.mark.parametrize(
    "body",
    [
        lambda b, h: h.softmax(0) * 3,
        lambda b, h: h.log_softmax(0),
        lambda b, h: h.cumsum(0),
    ],
    ids=["softmax", "log_softmax", "cumsum"],
)
def test_items_do_not_meet(body: Body) -> None:
    """Slot `i` of two items holds different tokens once both are merged."""
    assert_harmless(Block(body), repeated_tokens(2, 64))


def test_tables_may_have_a_batch_axis_and_fewer_axes() -> None:
    """Given as inputs, constant within each pair of equal tokens, so that nothing is lost."""
    x = repeated_tokens(2, 64)
    own = x[..., :1].contiguous()  # equal where the tokens are
    assert_exact(Block(lambda b, h, table: h * table), x, own)
    single = repeated_tokens(1, 64)
    assert_exact(Block(lambda b, h, table: h * table), single, single[0, :, :1].contiguous())


def test_a_table_may_be_a_factor_of_a_product_that_is_added() -> None:
    """As rotary embeddings by halves are written; what is added alone is refused above."""
    x = repeated_tokens(2, 64)
    own = x[..., :1].contiguous()
    assert_exact(Block(lambda b, h, table: torch.addcmul(h, table, h.cos())), x, own)
    assert_exact(Block(lambda b, h, table: torch.addcmul(h, h.cos(), table)), x, own)


def test_tables_where_items_come_after_tokens() -> None:
    """Sequence-first code, as in `nn.MultiheadAttention`, with positions."""

    def body(block: Block, h: Tensor, table: Tensor) -> Tensor:
        return (h.transpose(0, 1) * table.transpose(0, 1)).transpose(0, 1)

    x = repeated_tokens(2, 64)
    assert_exact(Block(body), x, x[..., :1].contiguous())


def test_integer_and_complex_activations_are_refused() -> None:
    class Whole(Block):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            hidden = F.linear(x, torch.ones(4, 4, dtype=x.dtype))
            return x + F.linear(hidden.square(), torch.ones(4, 4, dtype=x.dtype))

    for dtype in (torch.int64, torch.complex64):
        x = repeated_tokens(2, 64, 4).mul(3).to(dtype)
        assert_untouched(Whole(), x, reason=f"activations are {dtype}, not floating point")


def test_float64_and_float16_merge() -> None:
    for dtype in (torch.float64, torch.float16):
        model = Block().to(dtype)
        run = merged(model, repeated_tokens(2, 64).to(dtype))
        assert run.region.status == "merged"
        assert run.output.dtype == dtype


class Scalars(nn.Module):
    """Scalars on either side, and a subtraction from one."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block(lambda b, h: 1 - (2.0 / (h.square() + 1)) + (h > 0) * 0.5 - h / 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


def test_scalars_pass() -> None:
    assert_exact(Scalars(), repeated_tokens(2, 64))
