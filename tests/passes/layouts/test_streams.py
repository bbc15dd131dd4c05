"""Token axes lead back to where they begin; text and pictures differ in their origins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import CHANNELS, Attention, Block, capture, merged, repeated_tokens
from toma_fx.passes.graph.inputs import Inputs
from toma_fx.passes.graph.nodes import aten
from toma_fx.passes.layouts.layout import Origin
from toma_fx.passes.layouts.streams import Streams
from toma_fx.passes.normalize.normalize import normalize

Function = Callable[..., Tensor]


def origins(function: Function, *inputs: Tensor, axis: int = 1) -> tuple[Origin, ...]:
    """Where an axis of the value marked by `erf` begins."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(CHANNELS, CHANNELS)

        def forward(self, *inputs: Tensor) -> Tensor:
            return function(self.linear, *inputs).erf()

    gm = normalize(*capture(Model(), *inputs))
    node = gm.graph.find_nodes(op="call_function", target=aten.erf.default)[0]
    return Streams(gm.graph, Inputs(gm.graph)).of(node, axis)


def lengths(function: Function, *inputs: Tensor, axis: int = 1) -> list[int]:
    return [origin.length for origin in origins(function, *inputs, axis=axis)]


X = torch.randn(2, 24, CHANNELS)
TEXT = torch.randn(2, 7, CHANNELS)
PICTURE = torch.randn(2, CHANNELS, 4, 6)


@pytest.mark.parametrize(
    "function",
    [
        lambda linear, x: x,
        lambda linear, x: linear(x) + x,
        lambda linear, x: linear(x).view(2, 24, 4, 4).transpose(1, 2).transpose(1, 2).flatten(2),
        lambda linear, x: x.chunk(2, -1)[1],
        lambda linear, x: torch.nn.functional.scaled_dot_product_attention(linear(x), x, x),
        lambda linear, x: torch.ones(24, CHANNELS) * (x + 0 * linear(x).sum()),
        lambda linear, x: torch.ones(2, 24, 1) + (x + 0 * linear(x).sum()).mean(-1, keepdim=True),
    ],
)
def test_a_stream_begins_at_its_input(function: Function) -> None:
    (origin,) = origins(function, X)
    assert origin.node.op == "placeholder"
    assert (origin.axis, origin.length, origin.start, origin.grid) == (1, 24, 0, None)


@pytest.mark.parametrize(
    "fold",
    [
        lambda linear, p: p.flatten(2).transpose(1, 2),
        lambda linear, p: p.flatten(2).permute(0, 2, 1),
        lambda linear, p: p.permute(0, 2, 3, 1).reshape(2, 24, CHANNELS),
        lambda linear, p: p.view(2, CHANNELS, 24).transpose(1, 2).contiguous(),
        lambda linear, p: linear(p.permute(0, 2, 3, 1).flatten(1, 2)),
    ],
)
def test_the_fold_of_a_picture_knows_its_grid(fold: Function) -> None:
    (origin,) = origins(fold, PICTURE)
    assert origin.grid == (4, 6)
    assert origin.length == 24


def test_folds_of_patches_and_frames() -> None:
    def patches(linear: nn.Module, p: Tensor) -> Tensor:
        cells = p.view(2, CHANNELS, 4, 2, 6, 2).permute(0, 2, 4, 3, 5, 1)
        return cells.reshape(2, 24, 4 * CHANNELS)

    assert origins(patches, torch.randn(2, CHANNELS, 8, 12))[0].grid == (4, 6)
    frames = lambda linear, p: p.flatten(2).transpose(1, 2)  # noqa: E731
    assert origins(frames, torch.randn(2, CHANNELS, 3, 4, 6))[0].grid == (3, 4, 6)


def test_a_join_lists_its_parts_in_order() -> None:
    assert lengths(lambda linear, x, t: torch.cat((t, x), 1), X, TEXT) == [7, 24]
    assert lengths(lambda linear, x, t: linear(torch.cat((x, t, x), 1)), X, TEXT) == [24, 7, 24]
    first, second = origins(lambda linear, x, t: torch.cat((x, t), 1), X, X.clone())
    assert first.key != second.key  # equal lengths are no equal streams


@pytest.mark.parametrize(
    "part",
    [
        lambda linear, x, t: torch.cat((t, x), 1)[:, 7:],
        lambda linear, x, t: torch.cat((t, x), 1)[:, -24:],
        lambda linear, x, t: torch.cat((t, x), 1).split([7, 24], 1)[1],
        lambda linear, x, t: torch.cat((t, x), 1)[:, 3:][:, 4:],
    ],
)
def test_a_part_of_a_join_is_what_was_joined(part: Function) -> None:
    assert (
        origins(part, X, TEXT)[0].key
        == origins(lambda linear, x, t: x + 0 * t.sum(), X, TEXT)[0].key
    )


def test_a_part_of_a_stream_keeps_its_start() -> None:
    (origin,) = origins(lambda linear, x: x[:, 5:11], X)
    assert (origin.start, origin.length) == (5, 6)
    (origin,) = origins(lambda linear, x: x.chunk(3, 1)[2], X)
    assert (origin.start, origin.length) == (16, 8)
    (origin,) = origins(lambda linear, p: p.flatten(2).transpose(1, 2)[:, 6:], PICTURE)
    assert (origin.start, origin.length, origin.grid) == (6, 18, None)


def test_padded_items_share_what_comes_first() -> None:
    """Pictures in front of texts of several lengths: what is behind them is a stream of its own."""

    def padded(linear: nn.Module, p: Tensor, t: Tensor, **how: Any) -> Tensor:
        one, other = linear(p.flatten(2).transpose(1, 2))
        items = [torch.cat((one, t[0])), torch.cat((other, t[1, :3]))]
        return torch.nn.utils.rnn.pad_sequence(items, **{"batch_first": True, **how})

    picture, rest = origins(padded, PICTURE, TEXT)
    assert (picture.length, picture.grid, picture.start) == (24, (4, 6), 0)
    assert (rest.node.target, rest.length, rest.grid) == (aten.pad_sequence.default, 7, None)
    assert rest.key != picture.key

    behind = lambda linear, p, t: padded(linear, p, t, padding_side="left")  # noqa: E731
    assert lengths(behind, PICTURE, TEXT) == [31]

    def texts(linear: nn.Module, p: Tensor, t: Tensor) -> Tensor:
        one, other = linear(p.flatten(2).transpose(1, 2))
        items = [torch.cat((t[0], one)), torch.cat((t[1], other[:20]))]
        return torch.nn.utils.rnn.pad_sequence(items, batch_first=True)

    assert lengths(texts, PICTURE, TEXT) == [31]  # alike in text alone, so that no grid is known


def test_queries_not_keys_carry_an_attention() -> None:
    attention = torch.nn.functional.scaled_dot_product_attention
    (origin,) = origins(lambda linear, x, t: attention(x, t, t), X, TEXT)
    assert origin.length == 24
    (origin,) = origins(lambda linear, x, other: attention(x, linear(other), other), X, X * 2)
    wanted = origins(lambda linear, x, other: x + 0 * linear(other).sum(), X, X * 2)[0]
    assert origin.key == wanted.key


def test_an_unknown_operation_begins_a_new_stream() -> None:
    (origin,) = origins(lambda linear, x: x.roll(1, 1), X)
    assert origin.node.target == aten.roll.default


class Streamed(nn.Module):
    """A picture and a text, each with a feed-forward of its own; `result` picks the outputs."""

    def __init__(self, result: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        self.result = result
        self.picture, self.text = Block(), Block(seed=1)

    def forward(self, x: Tensor, text: Tensor) -> object:
        return self.result(self.picture(x), self.text(text))


def fates(model: nn.Module, *args: Tensor, **options: object) -> dict[int, str]:
    """What happens to the streams, by their length."""
    regions = merged(model, *args, **options).report.regions
    return {region.tokens: region.status for region in reversed(regions)}


def test_the_stream_that_reaches_the_output_is_the_picture() -> None:
    model = Streamed(lambda x, t: x + t.mean(1, keepdim=True))
    assert fates(model, repeated_tokens(2, 64), torch.randn(2, 32, CHANNELS)) == {
        64: "merged",
        32: "skipped",
    }


def test_several_streams_in_the_output_need_a_grid() -> None:
    model = Streamed(lambda x, t: (x, t))
    args = repeated_tokens(2, 64), torch.randn(2, 32, CHANNELS)
    run = merged(model, *args)
    assert run.untouched
    assert "streams of 32 and 64 tokens reach the output" in run.region.reason
    assert fates(model, *args, grid=(8, 8)) == {64: "merged", 32: "skipped"}
    assert fates(model, *args, grid=(4, 8)) == {64: "skipped", 32: "merged"}


def test_a_grid_cannot_tell_streams_of_equal_length() -> None:
    model = Streamed(lambda x, t: (x, t))
    run = merged(model, repeated_tokens(2, 64), torch.randn(2, 64, CHANNELS), grid=(8, 8))
    assert run.untouched
    assert "streams of 64 and 64 tokens" in run.region.reason


class FoldedText(nn.Module):
    """A long prompt arrives in chunks and is folded into one axis, like a picture's sides."""

    def __init__(self) -> None:
        super().__init__()
        self.picture, self.text, self.attention = Block(), Block(seed=1), Attention(seed=2)

    def forward(self, x: Tensor, chunks: Tensor) -> Tensor:
        text = self.text(chunks.flatten(1, 2))
        return self.attention(self.picture(x), context=text)


def test_folded_text_is_not_taken_for_the_picture() -> None:
    x, chunks = repeated_tokens(2, 64), torch.randn(2, 4, 8, CHANNELS)
    assert fates(FoldedText(), x, chunks) == {64: "merged", 32: "skipped"}


def test_two_pictures_of_one_output_are_told_apart() -> None:
    """The picture that is unfolded again is merged; one that is only read counts as text."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Block(), Block(seed=1)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            x, y = (p.flatten(2).transpose(1, 2) for p in (a, b))
            x, y = self.first(x), self.second(y)
            return x.transpose(1, 2).unflatten(2, a.shape[2:]) + y.mean(1)[..., None, None]

    pictures = torch.randn(2, CHANNELS, 8, 8), torch.randn(2, CHANNELS, 4, 8)
    assert fates(Two(), *pictures) == {64: "merged", 32: "skipped"}
