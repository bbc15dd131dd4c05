"""Which tokens are the picture: references, sound and text stay at full length."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import (
    CHANNELS,
    SMALL,
    Attention,
    Block,
    HandMerge,
    Sequence,
    assert_untouched,
    merged,
    relative_error,
    repeated_tokens,
)
from tests.passes.find.test_geometry import Rotary, by_sides
from toma_fx import TomaConfig
from toma_fx.order import tile_order

TILES = {"order": "tile", "window": 2}
SIDES, OTHER = (4, 8), (2, 4)
TOKENS, LENGTH = 32, 40


def edit(*blocks: nn.Module) -> nn.Module:
    """Two pictures in one packed stream, told apart by the table that rotates them."""
    return Sequence(Rotary(lambda: torch.cat((by_sides(*SIDES), by_sides(*OTHER)))), *blocks)


def test_references_stay_at_full_length() -> None:
    x = torch.randn(2, LENGTH, CHANNELS)
    run = merged(edit(Block()), x, **TILES)
    assert [(r.kind, r.tokens, r.merged_tokens) for r in run.report.regions] == [
        ("self_attention", TOKENS, TOKENS // 2),
        ("feed_forward", TOKENS, TOKENS // 2),
    ]


def test_an_mlp_beside_references_equals_one_merged_by_hand() -> None:
    model, x = edit(Block()), torch.randn(2, LENGTH, CHANNELS)
    run = merged(model, x, **TILES, regions=("feed_forward",))
    attention, block = model.blocks
    hidden = attention(x)
    entry = block.norm(hidden)
    config = TomaConfig(**{**SMALL, **TILES})
    hand = HandMerge(entry[:, :TOKENS], tile_order(SIDES, 2), config, 4)
    short = torch.cat((hand.merge(entry[:, :TOKENS]), entry[:, TOKENS:]), 1)
    out = block.out(block.hidden(torch.nn.functional.gelu(block.into(short))))
    merged_tokens = TOKENS // 2
    full = torch.cat((hand.unmerge(out[:, :merged_tokens]), out[:, merged_tokens:]), 1)
    assert relative_error(run.output, hidden + full) < 1e-5


def test_references_may_be_merged_in_windows_of_their_own() -> None:
    x = torch.randn(2, LENGTH, CHANNELS)
    run = merged(edit(Block()), x, **TILES, references="merge")
    assert {(r.tokens, r.merged_tokens) for r in run.report.regions} == {(LENGTH, LENGTH // 2)}
    wanted = torch.cat((tile_order(SIDES, 2), TOKENS + tile_order(OTHER, 2)))
    assert torch.equal(run.graph.get_buffer("toma_order_0_slots"), wanted)
    assert run.region.reason == ""


def test_windows_that_two_pictures_share_are_told() -> None:
    x = torch.randn(2, LENGTH, CHANNELS)
    run = merged(edit(), x, window=4, order="tile", references="merge")
    assert run.region.status == "merged"
    assert "pictures share a window where they meet" in run.region.reason


def test_the_grid_names_the_picture_by_its_size() -> None:
    run = merged(edit(Block()), torch.randn(2, LENGTH, CHANNELS), **TILES, grid=OTHER)
    assert {region.tokens for region in run.report.merged} == {8}


def test_a_grid_smaller_than_a_packed_stream_is_its_first_part() -> None:
    x = torch.randn(2, LENGTH, CHANNELS)
    run = merged(Sequence(Attention(), Block()), x, **TILES, grid=SIDES)
    assert {(r.tokens, r.merged_tokens) for r in run.report.merged} == {(TOKENS, TOKENS // 2)}
    assert len(run.report.merged) == 2


def test_or_begins_where_it_says() -> None:
    """Text in front of the picture: only the picture's tokens may change their neighbours."""
    x = torch.cat((torch.randn(2, 8, CHANNELS), repeated_tokens(2, TOKENS)), 1)
    options = {"order": "stripe", "window": 2, "grid": (TOKENS, 1), "grid_start": 8}
    block = Block()
    run = merged(block, x, **options)
    assert run.region.status == "merged", run.region.reason
    assert (run.region.tokens, run.region.merged_tokens) == (TOKENS, TOKENS // 2)
    assert relative_error(run.output, block(x)) < 1e-5
    late = merged(block, x, **{**options, "grid_start": 9})
    assert late.untouched
    assert "grid of 32 tokens from token 9 on does not fit into 40" in late.region.reason


class Beside(nn.Module):
    """Sound beside a picture; both are returned."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor, sound: Tensor) -> tuple[Tensor, Tensor]:
        return self.first(x), self.second(sound)


def test_of_two_streams_the_one_on_a_grid_is_the_picture() -> None:
    picture, sound = torch.randn(2, TOKENS, CHANNELS), torch.randn(2, 48, CHANNELS)
    run = merged(Beside(Rotary(lambda: by_sides(*SIDES)), Attention()), picture, sound, **TILES)
    assert [(r.tokens, r.status) for r in run.report.regions] == [
        (TOKENS, "merged"),
        (48, "skipped"),
    ]


def test_two_streams_that_nothing_tells_apart_are_refused() -> None:
    picture, sound = torch.randn(2, TOKENS, CHANNELS), torch.randn(2, 48, CHANNELS)
    reason = "streams of 32 and 48 tokens reach the output: name the picture with TomaConfig(grid"
    assert_untouched(Beside(Attention(), Attention()), picture, sound, reason=reason, **TILES)
    both = Beside(Rotary(lambda: by_sides(*SIDES)), Rotary(lambda: by_sides(6, 8)))
    assert_untouched(both, picture, sound, reason=reason, **TILES)
    named = merged(both, picture, sound, **TILES, grid=(6, 8))
    assert [(r.tokens, r.status) for r in named.report.regions] == [(32, "skipped"), (48, "merged")]


class Sound(nn.Module):
    """Channels over one side, embedded by a convolution of one element, as sound models do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv1d(CHANNELS, CHANNELS, 1)
        self.block = Block()
        self.out = nn.Conv1d(CHANNELS, CHANNELS, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.block(self.embed(x).transpose(1, 2)).transpose(1, 2))


def test_a_sound_has_windows_of_neighbours() -> None:
    x = repeated_tokens(2, 64).transpose(1, 2).contiguous()
    run = merged(Sound().eval(), x, order="tile", window=2)
    assert run.region.status == "merged", run.region.reason
    assert "toma_order_0_slots" not in dict(run.graph.named_buffers())


@pytest.mark.parametrize("ragged", [False, True])
def test_items_that_are_joined_one_by_one_must_be_alike(ragged: bool) -> None:
    """Written into zeros item by item: with text of two lengths the picture has two places."""

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, x: Tensor, text: Tensor) -> Tensor:
            lengths = [6, 4 if ragged else 6]
            both = torch.zeros(2, 6 + TOKENS, CHANNELS)
            for item, length in enumerate(lengths):
                both[item, :length] = text[item, :length]
                both[item, length : length + TOKENS] = x[item]
            both = self.block(both)
            return torch.stack([both[i, n : n + TOKENS] for i, n in enumerate(lengths)])

    x, text = repeated_tokens(2, TOKENS), torch.randn(2, 6, CHANNELS)
    run = merged(Joined(), x, text, grid=SIDES, window=2, order="tile")
    assert (run.region.status == "merged") == (not ragged), run.region.reason
