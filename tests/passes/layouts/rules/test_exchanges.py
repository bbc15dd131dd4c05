"""Exchanges between ranks: heads for tokens, and equal counts by shape alone or a refusal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx

from tests.helpers import Attention, assert_untouched, capture, merged, repeated_tokens, rotary
from tests.passes.layouts.rules.sharded import (
    RANKS,
    attend,
    group,
    to_all_heads,
    to_all_tokens,
)
from toma_fx.devices import PROFILES
from toma_fx.passes.graph.exchanges import is_exchange
from toma_fx.passes.layouts.layout import Ranks, Segment, TokenLayout
from toma_fx.passes.layouts.ranks import foldings
from toma_fx.passes.normalize.exchanges import flatten_exchanges
from toma_fx.passes.normalize.normalize import normalize

__all__ = ["group"]  # the fixture of these tests
Change = Callable[..., Tensor]


def ulysses(change: Change | None = None, **options: Any) -> Attention:
    """Attention over the tokens of all ranks; `change` is applied to the exchanged query."""

    def inner(_: Attention, query: Tensor, key: Tensor, value: Tensor, *others: Tensor) -> Tensor:
        query, key, value = (to_all_tokens(part) for part in (query, key, value))
        query = query if change is None else change(query, *others)
        return to_all_heads(attend(query, key, value, **options))

    return Attention(inner)


def exchanges(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if is_exchange(node)]


def test_every_exchange_sends_half_of_the_tokens() -> None:
    run = merged(ulysses(), repeated_tokens(2, 64))
    assert [(r.kind, r.status, r.merged_tokens) for r in run.report.regions] == [
        ("self_attention", "merged", 32)
    ]
    found = exchanges(run.graph.graph)
    whole = 2 * 64 * 16
    assert [node.meta["val"].numel() for node in found] == [whole // 2] * 4
    shares = [[whole // 2 // RANKS] * RANKS] * 2
    assert all(list(node.args[1:3]) == shares for node in found)


@pytest.mark.parametrize("words", [1, 8])
def test_text_is_exchanged_beside_the_picture(words: int) -> None:
    class Beside(Attention):
        def forward(self, x: Tensor, text: Tensor) -> Tensor:  # type: ignore[override]
            hidden = self.norm(x)
            layers = (self.query, self.key, self.value)
            parts = (torch.cat((text, layer(hidden)), 1) for layer in layers)
            out = to_all_heads(attend(*(to_all_tokens(part) for part in parts)))
            return x + self.out(out[:, words:])

    run = merged(Beside(), repeated_tokens(1, 64), torch.randn(1, words, 16))
    assert [r.status for r in run.report.regions] == ["merged"], str(run.report)
    sizes = [node.meta["val"].numel() for node in exchanges(run.graph.graph)]
    assert sizes == [(words + 32) * 16] * 4


REFUSED: dict[str, tuple[Change, str]] = {
    "a table": (lambda q, t: q * t.unsqueeze(1), "needs to know which tokens other ranks merge"),
    "a part": (lambda q, t: torch.cat((q[:, 64:], q[:, :64]), 1), "joins tokens of several ranks"),
    "a sum": (lambda q, t: q - q.mean(1, keepdim=True), "reduces over the tokens"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_other_ranks_tokens_may_not_meet(name: str) -> None:
    change, reason = REFUSED[name]
    table = rotary(2 * 64, 4)[0]
    assert_untouched(ulysses(change), repeated_tokens(1, 64), table, reason=reason)


def test_a_mask_of_all_ranks_is_refused() -> None:
    mask = torch.ones(128, dtype=torch.bool)

    def inner(_: Attention, q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Tensor:
        return to_all_heads(attend(*(to_all_tokens(part) for part in (q, k, v)), attn_mask=m))

    reason = "needs to know which tokens other ranks merge"
    assert_untouched(
        Attention(inner), repeated_tokens(1, 64), mask[None, None, None], reason=reason
    )


def test_unequal_shares_are_refused() -> None:
    """A rank that merges would send less than another waits for."""

    def inner(_: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        uneven = [q.shape[1] * 6, q.shape[1] * 10]
        swapped = funcol.all_to_all_single(q.flatten(), uneven, uneven, dist.group.WORLD)
        return attend(*(p.unflatten(-1, (4, 4)) for p in (swapped.view(q.shape), k, v))).flatten(2)

    assert_untouched(Attention(inner), repeated_tokens(1, 64), reason="ranks exchange unequal")


def test_an_exchange_of_tokens_themselves_is_refused() -> None:
    def inner(_: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        places = funcol.all_to_all_single(q[0], None, None, dist.group.WORLD)
        moved = funcol.wait_tensor(places).unsqueeze(0)
        return attend(*(p.unflatten(-1, (4, 4)) for p in (moved, k, v))).flatten(2)

    assert_untouched(Attention(inner), repeated_tokens(1, 64), reason="cuts tokens or items")


@pytest.mark.parametrize("options", [{"autotune": True}, {"device": "measure"}, {}], ids=str)
def test_what_each_rank_measures_decides_nothing(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither now nor at some time before: one rank may find a measurement that another lacks."""
    measured = replace(PROFILES["cpu"], source="measured")
    monkeypatch.setattr("toma_fx.devices.find.measure_device", lambda device: measured)
    monkeypatch.setattr("toma_fx.devices.find.cached", lambda device: measured)
    options = {"regions": "auto", **options}
    reason = "ranks have to merge alike"
    assert_untouched(ulysses(), repeated_tokens(1, 64), reason=reason, **options)


def test_a_named_profile_decides_alike_on_all_ranks() -> None:
    run = merged(ulysses(), repeated_tokens(1, 64), regions="auto", device="cpu")
    assert "merging gains nothing" in run.region.reason


def test_exchanges_get_their_axes_and_lose_them_again() -> None:
    gm, inputs = capture(ulysses(), repeated_tokens(2, 64))
    normal = normalize(gm, inputs)
    assert {node.meta["val"].dim() for node in exchanges(normal.graph)} == {5}
    flatten_exchanges(normal)
    assert {node.meta["val"].dim() for node in exchanges(normal.graph)} == {1}
    normal.graph.lint()
    assert normal(*inputs)[0].shape == (2, 64, 16)


@given(
    batch=st.integers(1, 3),
    ranks=st.integers(2, 4),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    merge=st.integers(0, 2),
)
def test_ranks_fold_into_tokens_and_come_apart(
    batch: int, ranks: int, lengths: list[int], merge: int
) -> None:
    """The folded layout cuts `ranks` times what one rank has, and unfolding gives that back."""
    segments = tuple(Segment(n, index == merge) for index, n in enumerate(lengths))
    layout = TokenLayout(1, 2, segments, Ranks(ranks, "0", 0))
    sizes = (ranks, layout.length, batch, 5)
    (_, same), (folded, joined) = foldings(layout, sizes)
    assert same == sizes
    assert joined == (ranks * layout.length, batch, 5)
    assert folded == TokenLayout(0, 1, segments * ranks, Ranks(ranks, "0", None))
    (_, _), (apart, again) = foldings(folded, joined)
    assert (apart, again) == (layout, sizes)
