"""What is merged, in which windows, and which regions share a plan."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import (
    CHANNELS,
    SMALL,
    Attention,
    Block,
    HandMerge,
    Picture,
    Run,
    Sequence,
    attend,
    capture,
    destinations,
    join_heads,
    merged,
    relative_error,
    rotate,
    split_heads,
)
from toma_fx import TomaConfig, last_report, rewrite
from toma_fx.order import curve_table, hilbert_order, order_from_positions, tile_order


class Layer(nn.Module):
    """An attention and a feed-forward in one block."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.attention, self.feed_forward = Attention(seed=seed), Block(seed=seed + 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.feed_forward(self.attention(x))


def tokens(count: int = 64, batch: int = 2) -> Tensor:
    return torch.randn(batch, count, CHANNELS, generator=torch.Generator().manual_seed(0))


def groups(run: Run) -> list[int | None]:
    """The group of each merged region."""
    return [region.group for region in run.report.merged]


def plans(run: Run) -> int:
    """How many planning operations the graph holds."""
    target = torch.ops.toma_fx.plan_.default
    return len(run.graph.graph.find_nodes(op="call_function", target=target))


@pytest.mark.parametrize(
    ("share", "wanted"),
    [("run", [0, 0, 0, 0]), ("block", [0, 0, 1, 1]), ("region", [0, 1, 2, 3])],
)
def test_sharing_by_blocks_of_one_class(share: str, wanted: list[int]) -> None:
    class One(nn.Module):
        """Attention and feed-forward whose sums belong to one module."""

        def __init__(self) -> None:
            super().__init__()
            self.norm, self.other = nn.LayerNorm(CHANNELS), nn.LayerNorm(CHANNELS)
            self.q, self.k, self.v, self.o, self.a, self.b = (
                nn.Linear(CHANNELS, CHANNELS) for _ in range(6)
            )

        def forward(self, x: Tensor) -> Tensor:
            n = self.norm(x)
            x = x + self.o(attend(self.q(n), self.k(n), self.v(n)))
            return x + self.b(self.a(self.other(x)).relu())

    run = merged(Sequence(One(), One()), tokens(), share=share)
    assert groups(run) == wanted
    assert plans(run) == len(set(wanted))


def test_a_run_ends_where_the_block_class_changes() -> None:
    run = merged(Sequence(Attention(), Attention(seed=1), Block(), Block(seed=1)), tokens())
    assert groups(run) == [0, 0, 1, 1]


def test_a_run_ends_where_the_channels_change() -> None:
    class Wider(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Block(), Block(channels=2 * CHANNELS)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.cat((self.first(x), x), -1))

    assert groups(merged(Wider(), tokens())) == [0, 1]


def test_a_shared_plan_is_made_from_the_first_entry() -> None:
    """The second block follows the first one's destinations, whatever its own features say."""
    model, x = Sequence(Block(), Block(seed=5)), tokens()
    shared, own = merged(model, x), merged(model, x, share="region")
    assert torch.equal(destinations(shared), destinations(own, 0))
    assert not torch.equal(destinations(own, 0), destinations(own, 1))
    assert not torch.equal(shared.output, own.output)


def statuses(run: Run) -> dict[str, tuple[str, str]]:
    """Fate and reason of the outermost region of each module."""
    found = reversed(run.report.regions)
    return {region.module_path: (region.status, region.reason) for region in found}


MODEL = Sequence(Layer(), Layer(3))


def test_include_and_exclude() -> None:
    only = statuses(merged(MODEL, tokens(), include=("blocks.1.*",)))
    assert only["blocks.0.attention"] == ("skipped", "no pattern of include matches")
    assert only["blocks.1.attention"][0] == only["blocks.1.feed_forward"][0] == "merged"
    without = statuses(merged(MODEL, tokens(), exclude=("*.attention", "nothing.like.this")))
    assert without["blocks.0.attention"] == ("skipped", "a pattern of exclude matches")
    assert without["blocks.0.feed_forward"][0] == "merged"
    both = statuses(merged(MODEL, tokens(), include=("blocks.1.*",), exclude=("*attention",)))
    assert [path for path, fate in both.items() if fate[0] == "merged"] == ["blocks.1.feed_forward"]


def test_a_pattern_may_name_a_kind() -> None:
    fates = statuses(merged(MODEL, tokens(), exclude=("feed_forward:blocks.0.*",)))
    assert fates["blocks.0.feed_forward"] == ("skipped", "a pattern of exclude matches")
    assert [fate[0] for fate in fates.values()].count("merged") == 3
    none = merged(MODEL, tokens(), exclude=("self_attention:*feed*", "feed_fward:*", "parallel:"))
    assert len(none.report.merged) == 4
    assert len([note for note in none.report.notes if "matches no region" in note]) == 3


def test_patterns_without_a_match_are_noted_and_warned_of() -> None:
    run = merged(MODEL, tokens(), exclude=("*.atention",), include=("blocks.*", "bloks.1"))
    notes = [note for note in run.report.notes if "pattern" in note]
    assert notes == [
        "pattern 'bloks.1' matches no region",
        "pattern '*.atention' matches no region",
    ]
    options = {**SMALL, "exclude": "*.atention", "inner_backend": "eager"}
    torch._dynamo.reset()
    with (
        torch.no_grad(),
        pytest.warns(UserWarning, match=r"pattern '\*\.atention' matches no region"),
    ):
        torch.compile(MODEL, backend="toma", options=options)(tokens())
    assert last_report().merged


def test_kinds_can_be_left_out() -> None:
    run = statuses(merged(MODEL, tokens(), regions="feed_forward"))
    assert run["blocks.0.attention"] == ("skipped", "regions leaves out self_attention")
    assert run["blocks.0.feed_forward"][0] == "merged"


def test_short_streams_stay() -> None:
    run = merged(Block(), tokens(), min_tokens=65)
    assert run.untouched
    assert run.region.reason == "64 tokens are fewer than min_tokens=65"
    assert merged(Block(), tokens(), min_tokens=64).region.status == "merged"


@pytest.mark.parametrize("ratio", [0, 0.0, 0.1, 0.24])
def test_a_ratio_that_removes_nothing_leaves_the_graph(ratio: float) -> None:
    run = merged(Block(), tokens(), ratio=ratio)
    assert run.untouched
    assert run.region.status == "skipped"
    assert f"ratio {ratio:g} removes no token" in run.region.reason


@pytest.mark.parametrize(
    ("ratio", "left"), [(0.25, 48), (0.5, 32), (0.74, 32), (0.75, 16), (0.999, 16)]
)
def test_the_ratio_holds_in_every_window(ratio: float, left: int) -> None:
    run = merged(Block(), tokens(), ratio=ratio)
    assert run.region.merged_tokens == left
    assert destinations(run).shape == (2, 16, left // 16)


@pytest.mark.parametrize(
    ("options", "windows", "size"),
    [
        ({"order": "global"}, 1, 64),
        ({"order": "stripe", "window": 4}, 4, 16),
        ({"order": "stripe", "window": 3}, 8, 8),
        ({"order": "tile", "grid": (4, 16), "window": 4}, 4, 16),
        ({"order": "tile", "grid": (4, 16), "window": 8}, 2, 32),
        ({"order": "hilbert", "grid": (8, 8), "window": 4}, 4, 16),
        ({"order": "tile", "grid": (1, 64), "window": 8}, 8, 8),
        ({"order": "tile", "grid": (4, 4, 4), "window": 4}, 4, 16),
    ],
)
def test_windows(options: dict[str, Any], windows: int, size: int) -> None:
    run = merged(Block(), tokens(), **options)
    assert destinations(run).shape == (2, windows, size // 2)


def test_clamped_windows_and_replaced_tiles_are_noted() -> None:
    clamped = merged(Block(), tokens(), order="tile", grid=(4, 16), window=8)
    assert clamped.region.reason == "window clamped to 4×8"
    prime = merged(Block(), tokens(7 * 5), order="tile", grid=(7, 5), window=4)
    assert prime.region.reason == "tiles do not divide 7×5: Hilbert windows"
    exact = merged(Block(), tokens(), order="tile", grid=(8, 8), window=4)
    assert exact.region.reason == ""


def test_an_unknown_grid_is_refused_with_the_way_out() -> None:
    run = merged(Block(), tokens(), order="tile")
    assert run.untouched
    assert run.region.status == "refused"
    assert "the grid of the 64 tokens is not in the graph" in run.region.reason
    assert "TomaConfig(grid=(height, width))" in run.region.reason
    assert merged(Block(), tokens(), order="stripe").region.status == "merged"


def test_a_grid_of_another_size_is_refused() -> None:
    run = merged(Block(), tokens(), order="tile", grid=(8, 9))
    assert run.untouched
    assert "grid 8×9 has 72 tokens, not 64" in run.region.reason


def test_a_square_is_guessed_on_request_only() -> None:
    guessed = merged(Block(), tokens(), order="tile", grid="square", window=4)
    assert guessed.region.reason == "square grid guessed"
    known = merged(Block(), tokens(), order="tile", grid=(8, 8), window=4)
    assert torch.equal(destinations(guessed), destinations(known))
    no_square = merged(Block(), tokens(60), order="tile", grid="square")
    assert no_square.untouched
    assert "the grid of the 60 tokens is not in the graph" in no_square.region.reason


@pytest.mark.parametrize(("order", "window"), [("tile", 2), ("hilbert", 2), ("tile", 4)])
def test_a_picture_shows_its_grid(order: str, window: int) -> None:
    picture = torch.randn(2, CHANNELS, 4, 12)
    run = merged(Picture(Block()), picture, order=order, window=window)
    x = picture.flatten(2).transpose(1, 2).contiguous()
    told = merged(Block(), x, order=order, window=window, grid=(4, 12))
    assert torch.equal(destinations(run), destinations(told))
    wrong = merged(Block(), x, order=order, window=window, grid=(12, 4))
    assert not torch.equal(destinations(run), destinations(wrong))


def test_a_grid_that_does_not_fit_gives_way_to_the_picture() -> None:
    """A grid is for one stream; others of the same model keep the one that the graph shows."""
    run = merged(Picture(Block()), torch.randn(2, CHANNELS, 4, 12), order="tile", grid=(64, 64))
    assert run.region.status == "merged"


class Rotary(Attention):
    """Attention with rotary angles from position ids, the first axis of which are tokens."""

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:  # type: ignore[override]
        return x + self.attend(self.norm(x), *self.tables(ids))

    def tables(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        frequencies = torch.tensor([1.0, 0.3])
        angles = torch.cat([ids[:, i : i + 1] * frequencies for i in (1, 2)], -1)
        return torch.cat((angles.cos(),) * 2, -1), torch.cat((angles.sin(),) * 2, -1)

    def attend(self, hidden: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        query, key = (
            rotate(split_heads(part(hidden)), cosines, sines) for part in (self.query, self.key)
        )
        value = split_heads(self.value(hidden))
        return self.out(join_heads(nn.functional.scaled_dot_product_attention(query, key, value)))


def tables(run: Run) -> list[Tensor]:
    """The token orders among the buffers, and their inverses."""
    return [buffer for _, buffer in run.graph.named_buffers() if buffer.dim() == 1]


def grid_ids(height: int, width: int) -> Tensor:
    cells = torch.cartesian_prod(torch.arange(height), torch.arange(width)).float()
    return torch.cat((torch.zeros(len(cells), 1), cells), -1)


class Flux(nn.Module):
    """Text and picture in one stream, with the position ids of both as inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Rotary()

    def forward(self, x: Tensor, text: Tensor, text_ids: Tensor, ids: Tensor) -> Tensor:
        both = self.block(torch.cat((text, x), 1), torch.cat((text_ids, ids), 0))
        return both[:, text.shape[1] :] * 2


@pytest.mark.parametrize("window", [2, 3])
@pytest.mark.parametrize("order", ["tile", "hilbert"])
def test_position_ids_give_the_order(order: str, window: int) -> None:
    """Windows are compact in the grid that the ids describe; another grid needs no new graph."""
    model, words = Flux(), 3
    x, text, text_ids = tokens(48), tokens(words, 2), torch.zeros(words, 3)
    config = TomaConfig(**{**SMALL, "order": order, "window": window})
    first = grid_ids(8, 6)
    run = merged(model, x, text, text_ids, first, order=order, window=window)
    assert run.region.status == "merged", run.region.reason
    shuffled = first[torch.randperm(48, generator=torch.Generator().manual_seed(1))]
    for ids in (first, grid_ids(4, 12), shuffled):
        inputs = [ids if value.shape == ids.shape else value for value in run.inputs]
        sequence = order_from_positions(ids, window, order, curve_table())
        with torch.no_grad():
            got = run.graph(*inputs)[0]
            hidden = model.block.norm(torch.cat((text, x), 1))
            hand = HandMerge(hidden[:, words:], sequence, config, window**2)
            short = torch.cat((hidden[:, :words], hand.merge(hidden[:, words:])), 1)
            tables = model.block.tables(torch.cat((text_ids, ids)))
            rows = [hand.gather(table[None, None], 2, 0, words) for table in tables]
            short = model.block.attend(short, *rows)[:, words:]
            assert relative_error(got, 2 * (x + hand.unmerge(short))) < 1e-5


def test_a_configured_grid_overrides_position_ids() -> None:
    run = merged(Rotary(), tokens(48), grid_ids(8, 6), order="tile", grid=(4, 12))
    assert any(torch.equal(table, tile_order((4, 12), 2)) for table in tables(run))


def test_the_order_of_a_plan_is_the_curve_of_its_grid() -> None:
    run = merged(Block(), tokens(48), order="hilbert", grid=(4, 12))
    assert any(torch.equal(table, hilbert_order((4, 12))) for table in tables(run))


def test_pairs_share_destinations() -> None:
    x = tokens(batch=4)
    alone, paired = merged(Block(), x), merged(Block(), x, cfg_pairs=True)
    picked = destinations(paired)
    assert torch.equal(picked[:2], picked[2:])
    assert not torch.equal(destinations(alone)[:2], destinations(alone)[2:])
    assert not torch.equal(picked[0], picked[1])
    assert torch.equal(destinations(merged(Block(), x, cfg_pairs=False)), destinations(alone))


@pytest.mark.parametrize("batch", [1, 3])
def test_pairs_need_an_even_batch(batch: int) -> None:
    run = merged(Block(), tokens(batch=batch), cfg_pairs=True)
    assert run.untouched
    assert run.region.reason == f"cfg_pairs needs an even batch, not {batch}"


def test_items_select_for_themselves() -> None:
    """An item's plan does not depend on its neighbours in the batch."""
    x = tokens(batch=3)
    together = destinations(merged(Block(), x))
    for item in range(3):
        assert torch.equal(destinations(merged(Block(), x[item : item + 1]))[0], together[item])


def test_nothing_merged_is_one_warning_with_reasons() -> None:
    options = {**SMALL, "min_tokens": 100, "inner_backend": "eager"}
    torch._dynamo.reset()
    with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.compile(Block(), backend="toma", options=options)(tokens())
    mine = [str(w.message) for w in caught if "toma_fx" in str(w.message)]
    assert len(mine) == 1
    assert "merged nothing" in mine[0]
    assert "min_tokens=100" in " ".join(mine[0].split())


def test_the_same_configuration_gives_the_same_graph() -> None:
    gm, inputs = capture(MODEL, tokens())
    config = TomaConfig(**SMALL)
    one, two = (rewrite(gm, inputs, config).graph_module for _ in range(2))
    assert one is not two
    assert one.code == two.code
    with torch.no_grad():
        assert torch.equal(one(*inputs)[0], two(*inputs)[0])
