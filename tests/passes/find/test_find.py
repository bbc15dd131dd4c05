"""What is proven is merged; near misses stay as they are, and say why."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers import (
    CHANNELS,
    SMALL,
    Attention,
    Block,
    HandMerge,
    Joint,
    Sequence,
    assert_exact,
    assert_harmless,
    assert_untouched,
    attend,
    merged,
    plain,
    relative_error,
    repeated_tokens,
)
from toma_fx import TomaConfig, explain

Forward = Callable[..., object]


class Written(Block):
    """A block with a `forward` of its own, over `norm`, `into`, `hidden`, `extra` and `out`."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.written = forward
        self.other_norm = nn.LayerNorm(CHANNELS)

    def forward(self, x: Tensor, *others: Tensor) -> object:  # type: ignore[override]
        return self.written(self, x, *others)

    def mlp(self, hidden: Tensor) -> Tensor:
        return self.out(F.gelu(self.into(hidden)))


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (
            lambda m, x: (lambda h: (x + m.out(h), h))(F.gelu(m.into(m.norm(x)))),
            "the graph's output reads a merged tensor at full length",
        ),
        (
            lambda m, x: (lambda h: (x + h, h.mean()))(m.mlp(m.norm(x))),
            "no layout rule for aten.mean.default",
        ),
        (
            lambda m, x: m.mlp(m.norm(x)),
            "the graph's output reads a merged tensor at full length",
        ),
        (
            lambda m, x: (lambda h: (x + h) * h)(m.mlp(m.norm(x))),
            "aten.mul.Tensor mixes merged tokens with a full-length activation",
        ),
        (
            lambda m, x: x * m.mlp(m.norm(x)),
            "aten.mul.Tensor mixes merged tokens with a full-length activation",
        ),
        (
            lambda m, x: x - m.mlp(m.norm(x)),
            "aten.sub.Tensor mixes merged tokens with a full-length activation",
        ),
        (
            lambda m, x: torch.addcmul(x, m.mlp(m.norm(x)), torch.ones(CHANNELS)),
            "aten.addcmul.default mixes merged tokens with a full-length activation",
        ),
    ],
)
def test_near_misses(forward: Forward, reason: str) -> None:
    run = assert_untouched(Written(forward), repeated_tokens(2, 64), reason=reason)
    assert {region.status for region in run.report.regions} == {"refused"}


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: x + m.mlp(m.norm(x)),
        lambda m, x: m.mlp(m.norm(x)) + x,
        lambda m, x: torch.add(x, m.mlp(m.norm(x)), alpha=0.5),
        lambda m, x: torch.add(m.mlp(m.norm(x)), x, alpha=0.5),
        lambda m, x: x.add_(m.mlp(m.norm(x))) * 2,
        lambda m, x: (lambda h: x + h + h)(m.mlp(m.norm(x))),
        lambda m, x: (lambda h: (x + h, x + 2 * h))(m.mlp(m.norm(x)))[1],
        lambda m, x: x + m.norm(x) + m.mlp(m.norm(x)),
        lambda m, x: x + m.mlp(m.norm(x)).double(),
        lambda m, x: (x.double() + m.mlp(m.norm(x)) * 2).float(),
    ],
)
def test_ways_back_to_the_stream(forward: Forward) -> None:
    model, x = Written(forward), repeated_tokens(2, 64)
    wanted = plain(model, x.clone())
    run = merged(model, x.clone())
    # The graph was run twice on its inputs, which it may write to: compare on fresh ones.
    fresh = [x.clone() if value.shape == x.shape else value for value in run.inputs]
    assert run.region.status == "merged", run.region.reason
    assert relative_error(run.graph(*fresh)[0], wanted) < 1e-5


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: (lambda h: (x.double() + h).float())(m.mlp(m.norm(x))),
        lambda m, x: (lambda h: x.view(2, 64, 1, -1).squeeze(2) + h)(m.mlp(m.norm(x))),
    ],
    ids=["cast", "view"],
)
def test_the_stream_may_be_cast_after_the_region_began(forward: Forward) -> None:
    """Some models add in float32: `(x.float() + gate * attention).type_as(x)`."""
    run = merged(Written(forward), repeated_tokens(2, 64))
    assert run.region.status == "merged", run.region.reason


def test_post_norm_blocks_merge() -> None:
    """`norm(x + f(x))`: the entry is the residual stream itself, the sum is the way back."""
    model = Written(lambda m, x: m.norm(x + m.mlp(x)))
    run = assert_harmless(model, repeated_tokens(2, 64))
    assert run.region.status == "merged", run.region.reason


def test_post_norm_blocks_keep_their_details() -> None:
    """However the stream goes on, what is not merged is not averaged: `x` of the inner sums."""

    def forward(m: Written, x: Tensor) -> Tensor:
        y = 2 * x
        y = m.norm(y + 0.01 * m.mlp(y))
        y = m.other_norm(y + 0.01 * m.extra(F.gelu(m.hidden(y))))
        return x + y

    x = torch.randn(2, 64, CHANNELS)
    model = Written(forward)
    assert relative_error(merged(model, x).output, plain(model, x)) < 0.05


def test_a_gate_from_the_entry_itself() -> None:
    """Only linears read the entry merged, so its gate stays at full length: so does the product."""
    forward = lambda m, x: (lambda n: x + m.mlp(n) * n.sigmoid())(m.norm(x))  # noqa: E731
    x = torch.randn(2, 64, CHANNELS)
    assert_exact(Written(forward), repeated_tokens(2, 64))
    run = merged(Written(forward), x)
    model = Written(forward)
    hand = HandMerge(model.norm(x), torch.arange(64), TomaConfig(**SMALL), 4)
    entry = model.norm(x)
    wanted = x + hand.unmerge(model.mlp(hand.merge(entry))) * entry.sigmoid()
    assert relative_error(run.output, wanted) < 1e-5


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: (lambda n, g: torch.cat((x + g(n), g(n)), -1))(
            m.norm(x), lambda n: m.mlp(n) * n.sigmoid()
        ),
        lambda m, x: (lambda n: x + m.out(m.mlp(n) * n.sigmoid()))(m.norm(x)),
        lambda m, x: (lambda n: x - m.mlp(n) * n.sigmoid())(m.norm(x)),
        lambda m, x: (lambda n: n + m.mlp(n) * x.mean(1, keepdim=True))(m.norm(x)).sum(1),
    ],
    ids=["returned as well", "inside the region", "subtracted", "one gate for all, then summed"],
)
def test_near_misses_of_a_gate(forward: Forward) -> None:
    assert_harmless(Written(forward), repeated_tokens(2, 64))


def test_a_sum_of_two_norms_outputs() -> None:
    """Attention and MLP from separate norms, added to each other before the stream."""

    def forward(m: Written, x: Tensor) -> Tensor:
        n = m.norm(x)
        return x + (m.mlp(n) + m.extra(F.gelu(m.hidden(m.other_norm(x)))))

    assert_harmless(Written(forward), repeated_tokens(2, 64))


class SharedProjections(Joint):
    """Text and picture are joined before the projections, and part before the sums (CogVideoX)."""

    def forward(self, x: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        both = torch.cat((self.text_norm(text), self.norm(x)), 1)
        both = self.out(attend(*(part(both) for part in self.projections[:3])))
        words, picture = both.split([text.shape[1], x.shape[1]], 1)
        return x + picture, text + words


def test_a_joined_stream_may_part_before_the_sums() -> None:
    run = merged(
        SharedProjections(), repeated_tokens(2, 64), torch.randn(2, 7, CHANNELS), grid=(8, 8)
    )
    assert run.region.status == "merged", run.region.reason
    assert [part.shape for part in run.output] == [(2, 64, CHANNELS), (2, 7, CHANNELS)]


def test_the_text_of_a_joint_attention_may_be_returned_too() -> None:
    class Both(Joint):
        def forward(self, x: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            hidden, words = self.norm(x), self.text_norm(text)
            pairs = zip(self.projections[:3], self.projections[3:], strict=True)
            both = attend(*(torch.cat((b(words), a(hidden)), 1) for a, b in pairs))
            length = text.shape[1]
            return x + self.out(both[:, length:]), text + self.text_out(both[:, :length])

    run = merged(Both(), repeated_tokens(2, 64), torch.randn(2, 7, CHANNELS), grid=(8, 8))
    assert run.region.status == "merged", run.region.reason
    assert [part.shape for part in run.output] == [(2, 64, CHANNELS), (2, 7, CHANNELS)]


def test_a_pooled_output_leaves_no_picture_to_merge() -> None:
    run = merged(Written(lambda m, x: (x + m.mlp(m.norm(x))).mean(1)), repeated_tokens(2, 64))
    assert run.untouched
    assert run.region.status == "skipped"


def test_one_refused_region_does_not_keep_others_from_merging() -> None:
    model = Sequence(Block(), Block(lambda b, h: h.sort(-1).values), Block())
    run = assert_harmless(model, repeated_tokens(2, 64))
    outer = {region.module_path: region.status for region in reversed(run.report.regions)}
    assert outer == {"blocks.0": "merged", "blocks.1": "refused", "blocks.2": "merged"}


def test_an_unknown_operation_on_the_stream_between_blocks_is_harmless() -> None:
    class Shifted(nn.Module):
        """As in shifted windows: the stream itself is rolled."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Attention(), Block()

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).roll(4, 1))

    assert_harmless(Shifted(), repeated_tokens(2, 64))


@pytest.mark.parametrize("where", ["between projections", "between regions"])
def test_writes_to_the_memory_of_an_entry(where: str) -> None:
    def between_projections(m: Written, x: Tensor) -> Tensor:
        n = m.norm(x)
        view = n.view(2, 64, CHANNELS)
        query = m.into(view)
        n.mul_(3)
        return x + m.out(attend(query, m.hidden(view), m.extra(view)))

    def between_regions(m: Written, x: Tensor) -> Tensor:
        x = x * 1.5
        view = x.view(2, 64, CHANNELS)
        x.add_(m.mlp(view))
        x.add_(m.extra(F.gelu(m.hidden(view))))
        return x

    forward = between_projections if where == "between projections" else between_regions
    assert_harmless(Written(forward), repeated_tokens(2, 64))


def test_a_stream_with_the_batch_in_its_second_axis_is_harmless() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        y = x.transpose(0, 1)
        hidden = m.mlp(m.norm(y).transpose(0, 1)).transpose(0, 1)
        return (y + hidden).transpose(0, 1)

    assert_harmless(Written(forward), repeated_tokens(2, 64))
    assert_harmless(Written(forward), repeated_tokens(16, 16))


def test_a_stream_with_channels_in_its_second_axis_is_harmless() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        y = x.transpose(1, 2)
        return (y + m.mlp(m.norm(y.transpose(1, 2))).transpose(1, 2)).transpose(1, 2)

    assert_harmless(Written(forward), repeated_tokens(2, 64))
    assert_harmless(Written(forward), repeated_tokens(2, 16))


def test_parts_of_a_guidance_batch() -> None:
    """One half goes on alone, or one item becomes two: plans are made for a number of items."""

    def half(m: Written, x: Tensor) -> Tensor:
        y = x + m.mlp(m.norm(x))
        y = y[:1]
        return y + m.extra(F.gelu(m.hidden(m.other_norm(y))))

    def doubled(m: Written, x: Tensor) -> Tensor:
        y = x + m.mlp(m.norm(x))
        y = torch.cat((y, y), 0)
        return y + m.extra(F.gelu(m.hidden(m.other_norm(y))))

    def expanded(m: Written, x: Tensor) -> Tensor:
        hidden = m.mlp(m.norm(x[:1]))
        return x + hidden.expand(2, -1, -1)

    for forward in (half, doubled, expanded):
        assert_harmless(Written(forward), repeated_tokens(2, 64))


def test_a_single_token_axis_is_no_stream() -> None:
    run = merged(Block(), torch.randn(2, 1, CHANNELS))
    assert run.untouched


def test_several_devices_are_refused() -> None:
    """A model that is spread over devices moves activations between its linears."""

    class Spread(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(CHANNELS, device="meta")
            self.into = nn.Linear(CHANNELS, CHANNELS, device="meta")
            self.out = nn.Linear(CHANNELS, CHANNELS)

        def forward(self, x: Tensor) -> Tensor:
            stream = x.to("cpu")
            return stream + self.out(F.gelu(self.into(self.norm(x))).to("cpu"))

    x = torch.randn(2, 64, CHANNELS, device="meta")
    report = explain(Spread(), x, config=TomaConfig(**SMALL))
    assert "lies on several devices (cpu, meta)" in report.regions[0].reason


def test_depth_counts() -> None:
    for depth in (1, 3):
        blocks = [block for _ in range(depth) for block in (Attention(), Block())]
        run = assert_exact(Sequence(*blocks), repeated_tokens(2, 64))
        kinds = [region.kind for region in run.report.merged]
        assert kinds == ["self_attention", "feed_forward"] * depth
