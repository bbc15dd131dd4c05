"""Rings: queries meet the keys of one rank after another, all of them gathered merged."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
import torch.nn.functional as F
from torch import Tensor, fx

from tests.helpers import Attention, assert_untouched, capture, merged, repeated_tokens, rotary
from tests.passes.layouts.rules.sharded import (
    HEADS,
    RANKS,
    attend,
    group,
    to_all_heads,
    to_all_tokens,
)
from toma_fx.passes.graph.exchanges import is_exchange, is_gather
from toma_fx.passes.normalize.gathers import flatten_gathers
from toma_fx.passes.normalize.normalize import normalize

__all__ = ["group"]  # the fixture of these tests
Turns = list[list[Tensor]]
"""Keys and values of each rank."""


def gather(*parts: Tensor) -> Turns:
    """As diffusers does it: all of one rank in one flat piece."""
    flat = torch.cat([part.flatten() for part in parts]).contiguous()
    turns = funcol.all_gather_tensor(flat, 0, dist.group.WORLD).chunk(RANKS)
    return [_parts(turn, parts) for turn in turns]


def _parts(turn: Tensor, like: tuple[Tensor, ...]) -> list[Tensor]:
    found, at = [], 0
    for part in like:
        found.append(turn[at : at + part.numel()].reshape_as(part))
        at += part.numel()
    return found


def flash(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """A result and its normaliser, tokens first."""
    parts = (part.transpose(1, 2) for part in (query, key, value))
    out, normaliser = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*parts)
    return out.transpose(1, 2), normaliser.transpose(1, 2).unsqueeze(-1)


def around(query: Tensor, key: Tensor, value: Tensor, turns: Turns) -> Tensor:
    """Attention to own keys, then to those of the others: twice, so that normalisers are read."""
    out, normaliser = flash(query, key, value)
    for parts in (*turns[1:], *turns[1:]):
        next_out, next_normaliser = flash(query, *parts)
        out = out - torch.sigmoid(next_normaliser - normaliser) * (out - next_out)
        normaliser = normaliser - F.logsigmoid(normaliser - next_normaliser)
    return out


def ring(_: Attention, query: Tensor, key: Tensor, value: Tensor, *others: Tensor) -> Tensor:
    query, key, value = (part.unflatten(-1, (HEADS, -1)) for part in (query, key, value))
    return around(query, key, value, gather(key, value)).flatten(2)


def gathers(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if is_gather(node)]


@pytest.mark.parametrize("batch", [1, 2])
def test_a_ring_gathers_half_of_the_tokens(batch: int) -> None:
    run = merged(Attention(ring), repeated_tokens(batch, 64))
    assert [(r.kind, r.status, r.merged_tokens) for r in run.report.regions] == [
        ("self_attention", "merged", 32)
    ], str(run.report)
    (found,) = gathers(run.graph.graph)
    assert found.meta["val"].shape == (RANKS * 2 * batch * 32 * 16,)


def test_keys_of_all_tokens_are_gathered_whole() -> None:
    run = merged(Attention(ring), repeated_tokens(1, 64), keys="all")
    assert run.region.merged_tokens == 32
    (found,) = gathers(run.graph.graph)
    assert found.meta["val"].numel() == RANKS * 2 * 64 * 16


def test_a_ring_of_groups_that_have_traded_heads_for_tokens() -> None:
    """Both at once: what a rank of the ring has are the tokens of its group."""

    def inner(_: Attention, *parts: Tensor) -> Tensor:
        query, key, value = (to_all_tokens(part) for part in parts)
        return to_all_heads(around(query, key, value, gather(key, value)))

    run = merged(Attention(inner), repeated_tokens(2, 64))
    assert run.region.merged_tokens == 32, str(run.report)
    (found,) = gathers(run.graph.graph)
    assert found.meta["val"].numel() == RANKS * 2 * 2 * 32 * 16
    sizes = [n.meta["val"].numel() for n in run.graph.graph.nodes if is_exchange(n)]
    assert sizes == [2 * 32 * 16] * 4


def test_keys_of_all_ranks_at_once() -> None:
    """Whole items, one rank behind the other, folded into one row of tokens."""

    def inner(_: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        whole = (funcol.all_gather_tensor(part, 0, dist.group.WORLD) for part in (k, v))
        parts = (q, *(part.view(1, RANKS * 64, 16) for part in whole))
        return attend(*(part.unflatten(-1, (HEADS, -1)) for part in parts)).flatten(2)

    run = merged(Attention(inner), repeated_tokens(1, 64))
    assert run.region.merged_tokens == 32, str(run.report)
    assert [node.meta["val"].shape for node in gathers(run.graph.graph)] == [(RANKS, 32, 16)] * 2


Inner = Callable[..., Tensor]


def among(change: Callable[..., Turns]) -> Inner:
    """A ring that does something to what it has gathered."""

    def inner(_: Attention, q: Tensor, k: Tensor, v: Tensor, *others: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (HEADS, -1)) for part in (q, k, v))
        return around(q, k, v, change(k, v, *others)).flatten(2)

    return inner


def _with_table(k: Tensor, v: Tensor, table: Tensor) -> Turns:
    return [[key * table.unsqueeze(1), value] for key, value in gather(k, v)]


def _crossed(k: Tensor, v: Tensor, _: Tensor) -> Turns:
    (own_key, own_value), (key, value) = gather(k, v)
    return [[own_key, value], [key, own_value]]


def _joined(k: Tensor, v: Tensor, _: Tensor) -> Turns:
    turns = gather(k, v)
    whole = [torch.cat(parts, 1) for parts in zip([k, v], turns[1], strict=True)]
    return [whole, whole]


def _padded(k: Tensor, v: Tensor, _: Tensor) -> Turns:
    """Values with more channels than keys do not stack."""
    return [[key, wide[..., :4]] for key, wide in gather(k, F.pad(v, (0, 4)))]


def _in_one(k: Tensor, v: Tensor, _: Tensor) -> Turns:
    both = funcol.all_gather_tensor(torch.cat((k, v)), 0, dist.group.WORLD)
    return [list(turn.chunk(2)) for turn in both.chunk(RANKS)]


REFUSED = {
    "a table": (_with_table, "needs to know which tokens other ranks merge"),
    "keys of one rank, values of another": (_crossed, "keys and values carry tokens differently"),
    "keys of two ranks": (_joined, "joins tokens of several ranks"),
    "other widths": (_padded, "folds the token axis"),
    "items of all ranks": (_in_one, "joins batches"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_gathered_tokens_may_not_meet(name: str) -> None:
    change, reason = REFUSED[name]
    table = rotary(64, 4)[0]
    assert_untouched(Attention(among(change)), repeated_tokens(1, 64), table, reason=reason)


def test_a_gather_of_items_is_refused() -> None:
    """Two items of each rank: which of the four is whose, no axis tells."""

    def inner(_: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = (funcol.all_gather_tensor(part, 0, dist.group.WORLD) for part in (k, v))
        parts = (q, keys[2:], values[2:])
        return attend(*(part.unflatten(-1, (HEADS, -1)) for part in parts)).flatten(2)

    reason = "joins items, or merged tokens, of all ranks"
    assert_untouched(Attention(inner), repeated_tokens(2, 64), reason=reason)


def test_what_each_rank_measures_decides_nothing() -> None:
    options = {"regions": "auto", "autotune": True}
    reason = "ranks have to merge alike"
    assert_untouched(Attention(ring), repeated_tokens(1, 64), reason=reason, **options)


def test_gathers_get_their_axes_and_lose_them_again() -> None:
    gm, inputs = capture(Attention(ring), repeated_tokens(2, 64))
    normal = normalize(gm, inputs)
    sizes = (RANKS, 2, 2, 64, HEADS, 16 // HEADS)
    assert [node.meta["val"].shape for node in gathers(normal.graph)] == [sizes]
    flatten_gathers(normal)
    assert [node.meta["val"].dim() for node in gathers(normal.graph)] == [1]
    normal.graph.lint()
    assert normal(*inputs)[0].shape == (2, 64, 16)
