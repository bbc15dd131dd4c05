"""Linears, matrix products and norms pass over channels and are refused over tokens or items."""

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
    repeated_tokens,
)

Body = Callable[..., Tensor]


@pytest.mark.parametrize(
    "body",
    [
        lambda b, h: F.linear(h, b.extra.weight),
        lambda b, h: h.matmul(b.extra.weight),
        lambda b, h: h @ torch.eye(CHANNELS).expand(h.shape[0], -1, -1),
        lambda b, h: torch.einsum("bnc,cd->bnd", h, b.extra.weight),
        lambda b, h: torch.einsum("b n c, d c -> b d n", h, b.extra.weight).transpose(1, 2),
        lambda b, h: torch.einsum(
            "bnhd,hde->bnhe", h.unflatten(-1, (2, 8)), torch.ones(2, 8, 8)
        ).flatten(2),
        lambda b, h: F.layer_norm(h, (CHANNELS,)),
        lambda b, h: F.layer_norm(h.unflatten(-1, (2, 8)), (2, 8)).flatten(2),
        lambda b, h: F.rms_norm(h.unflatten(-1, (2, 8)), (8,)).flatten(2),
    ],
)
@pytest.mark.parametrize(("batch", "tokens"), [(2, 64), (16, 16), (4, 4)])
def test_contractions_over_channels_pass(body: Body, batch: int, tokens: int) -> None:
    assert_exact(Block(body), repeated_tokens(batch, tokens))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            lambda b, h: F.linear(h.transpose(1, 2), torch.ones(64, 64)).transpose(1, 2),
            "aten.linear.default contracts the token axis",
        ),
        (
            lambda b, h: (h.transpose(1, 2) @ torch.ones(64, 64)).transpose(1, 2),
            "aten.matmul.default contracts the token axis",
        ),
        (lambda b, h: torch.ones(64, 64) @ h, "aten.matmul.default takes tokens as weights"),
        (lambda b, h: (h @ h.transpose(1, 2)) @ h, "aten.matmul.default takes tokens as weights"),
        (lambda b, h: torch.einsum("bnc,bmc->bnm", h, h) @ h, "contracts or pairs the tokens"),
        (lambda b, h: torch.einsum("bnc,nm->bmc", h, torch.ones(64, 64)), "aten.einsum"),
        (lambda b, h: torch.einsum("...c,dc->...d", h, b.extra.weight), "implicit letters"),
        (
            lambda b, h: F.layer_norm(h.transpose(1, 2), (64,)).transpose(1, 2),
            "aten.layer_norm.default normalises over the tokens",
        ),
        (lambda b, h: F.rms_norm(h, (64, CHANNELS)), "normalises over the tokens"),
        (
            lambda b, h: F.group_norm(h.transpose(1, 2), 4).transpose(1, 2),
            "aten.group_norm.default mixes tokens",
        ),
        (
            lambda b, h: F.conv1d(
                h.transpose(1, 2), torch.ones(CHANNELS, CHANNELS, 3), padding=1
            ).transpose(1, 2),
            "aten.conv1d.default mixes tokens",
        ),
        (
            lambda b, h: F.conv1d(h, torch.ones(64, 64, 1)),
            "aten.conv1d.default contracts the token axis",
        ),
        (
            lambda b, h: (
                F.conv1d(h.transpose(1, 2), torch.ones(CHANNELS, CHANNELS, 1), stride=2)
                .repeat_interleave(2, 2)
                .transpose(1, 2)
            ),
            "aten.conv1d.default mixes tokens",
        ),
    ],
)
def test_contractions_over_tokens_are_refused(body: Body, reason: str) -> None:
    run = assert_untouched(Block(body), repeated_tokens(2, 64), reason=reason)
    assert run.region.status == "refused"


def test_as_many_channels_as_tokens_does_not_hide_a_contraction() -> None:
    """A square weight fits both axes."""
    body = lambda b, h: b.extra(h.transpose(1, 2)).transpose(1, 2)  # noqa: E731
    assert_untouched(Block(body), repeated_tokens(2, 16), reason="contracts the token axis")
    assert_exact(Block(lambda b, h: b.extra(h)), repeated_tokens(2, 16))


SWAP = [[0.0, 1.0], [1.0, 0.0]]


@pytest.mark.parametrize(
    "body",
    [
        lambda b, h: torch.einsum("bnc,ab->anc", h, torch.tensor(SWAP)),
        lambda b, h: torch.einsum("bnc->nc", h).unsqueeze(0).expand(2, -1, -1),
        lambda b, h: F.linear(h.permute(1, 2, 0), torch.tensor(SWAP)).permute(2, 0, 1),
        lambda b, h: (h.permute(2, 1, 0) @ torch.tensor(SWAP)).permute(2, 1, 0),
        lambda b, h: F.layer_norm(h.permute(2, 1, 0) * torch.tensor([1.0, 2.0]), (2,)).permute(
            2, 1, 0
        ),
    ],
    ids=["einsum", "sum by einsum", "linear", "matmul", "norm"],
)
def test_items_do_not_meet(body: Body) -> None:
    """Slot `i` of two items holds different tokens once both are merged."""
    assert_harmless(Block(body), repeated_tokens(2, 64))


class DepthwiseMix(nn.Module):
    """A feed-forward with a depthwise convolution over the picture in its middle."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS)
        self.block = Block(self._convolve)

    def _convolve(self, block: Block, h: Tensor) -> Tensor:
        picture = h.transpose(1, 2).unflatten(2, (8, 8))
        return self.mix(picture).flatten(2).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


def test_a_convolution_between_linears_is_refused() -> None:
    run = assert_untouched(DepthwiseMix(), repeated_tokens(2, 64), reason="the token axis")
    assert run.region.status == "refused"
