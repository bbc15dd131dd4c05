"""`cat` and `stack`: segments line up on the token axis, layouts agree elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import (
    CHANNELS,
    Attention,
    Block,
    Joint,
    assert_exact,
    assert_harmless,
    assert_untouched,
    attend,
    merged,
    plain,
    relative_error,
    repeated_tokens,
)

Body = Callable[..., Tensor]


@pytest.mark.parametrize(
    "body",
    [
        lambda b, h: torch.cat((h, h), -1)[..., ::2],
        lambda b, h: torch.cat([h[..., 8:], h[..., :8]], dim=2),
        lambda b, h: torch.stack((h, b.extra(h)), dim=1).sum(1),
        lambda b, h: torch.stack((h, b.extra(h))).mean(0),
        lambda b, h: torch.concat((h.sin(), b.extra(h)), -1).unflatten(-1, (2, -1)).amax(2),
    ],
)
def test_joins_of_merged_tokens(body: Body) -> None:
    assert_exact(Block(body), repeated_tokens(2, 64))


def test_a_full_length_tensor_beside_merged_tokens_is_refused() -> None:
    class Skip(Block):
        """Concatenates the full-length stream, as U-shaped transformers do."""

        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            hidden = torch.cat((self.into(self.norm(x)), x), -1)
            return x + self.out(hidden.unflatten(-1, (2, -1)).mean(-2))

    assert_untouched(Skip(), repeated_tokens(2, 64), reason="aten.cat.default joins merged tokens")


def test_a_stack_with_full_length_activations_is_refused() -> None:
    class Skip(Block):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return x + self.out(torch.stack((self.into(self.norm(x)), x)).mean(0))

    assert_untouched(
        Skip(), repeated_tokens(2, 64), reason="aten.stack.default joins merged tokens"
    )


@pytest.mark.parametrize("words", [1, 7, 32, 64, 128], ids=lambda words: f"{words} words")
def test_text_of_any_length_beside_the_picture(words: int) -> None:
    """Also as many words as tokens, before or after merging: segments are told by origin."""
    model = Joint()
    x, text = repeated_tokens(2, 64), torch.randn(2, words, CHANNELS)
    run = merged(model, x, text)
    assert [(r.kind, r.tokens, r.merged_tokens) for r in run.report.merged] == [
        ("joint_attention", 64, 32)
    ]
    # The merged picture's keys weigh half as much against the words: compare with a picture of
    # single tokens, of which nothing merges away but copies.
    single = torch.stack([item.unique(dim=0) for item in x])
    wanted = plain(model, single, text)
    places = (x.unsqueeze(2) == single.unsqueeze(1)).all(-1).long().argmax(-1)
    wanted = wanted.take_along_dim(places.unsqueeze(-1), 1)
    assert relative_error(run.output, wanted) < 1e-5


def test_taking_the_text_for_the_picture_is_no_way_back() -> None:
    class Confused(Joint):
        def forward(self, x: Tensor, text: Tensor) -> Tensor:  # type: ignore[override]
            both = torch.cat((self.text_norm(text), self.norm(x)), 1)
            both = attend(*(part(both) for part in self.projections[:3]))
            return x + self.out(both[:, : x.shape[1]])

    assert_harmless(Confused(), repeated_tokens(2, 64), torch.randn(2, 64, CHANNELS))


def test_keys_of_another_stream_at_full_length() -> None:
    """Reference pictures: their keys stand beside the merged ones, unmerged."""

    class Reference(Attention):
        def forward(self, x: Tensor, other: Tensor) -> Tensor:  # type: ignore[override]
            hidden = self.norm(x)
            keys = torch.cat((hidden, other), 1)
            return x + self.out(attend(self.query(hidden), self.key(keys), self.value(keys)))

    x, other = repeated_tokens(2, 64), torch.randn(2, 64, CHANNELS)
    run = merged(Reference(), x, other)
    single = torch.stack([item.unique(dim=0) for item in x])
    wanted = plain(Reference(), single, other)
    places = (x.unsqueeze(2) == single.unsqueeze(1)).all(-1).long().argmax(-1)
    if run.report.merged and run.report.merged[0].kind == "self_attention":
        wanted = wanted.take_along_dim(places.unsqueeze(-1), 1)
    else:  # queries alone are merged
        wanted = plain(Reference(), x, other)
    assert relative_error(run.output, wanted) < 1e-5


def test_a_stream_joined_with_itself_is_not_merged_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, x: Tensor) -> Tensor:
            both = self.block(torch.cat((x, x), 1))
            return both[:, :64] + both[:, 64:]

    assert_harmless(Twice(), repeated_tokens(2, 64))


def test_an_empty_operand_of_a_join_is_harmless() -> None:
    """PyTorch lets `cat` skip tensors of shape `[0]`, whatever the others' rank."""

    class Cache(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, x: Tensor) -> Tensor:
            return self.block(torch.cat((torch.empty(0), x), 1))

    assert_harmless(Cache(), repeated_tokens(2, 64))
