"""Tokens sharded over ranks by diffusers and merged on each: what one process does, in fewer bytes.

Ulysses trades heads for tokens; in a ring, which on a CPU needs a kernel of ours (`rings`), keys
and values of all ranks are gathered.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from benchmarks.scale import exchanged
from tests.eager_merge import relative
from tests.parallel import cases
from tests.parallel.cases import FOUR, LONG, QUICK
from tests.parallel.models import FRAMES, HEAD, HEADS, RING, TOKENS, ULYSSES, UNIFIED, WORDS
from tests.parallel.ranks import Results, run_ranks
from tests.parallel.settings import KEYS, TIMES

# What the ranks found serves all tests: one worker runs them.
pytestmark = pytest.mark.xdist_group("ranks")
RANKS = [
    pytest.param((2, QUICK), id="2 ranks"),
    *(
        pytest.param((n, chosen), marks=pytest.mark.ranks, id=f"{n} ranks, more")
        for n, chosen in ((2, LONG), (4, FOUR))
    ),
]


@pytest.fixture(scope="module", params=RANKS)
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Results]:
    """What each rank found; one group runs all cases."""
    count, chosen = request.param
    if chosen is QUICK:
        found: list[Results] = request.getfixturevalue("quick")
        return found
    folder = tmp_path_factory.mktemp("ranks")
    return run_ranks(partial(cases.small_models, chosen=chosen), count, folder)


@pytest.fixture(params=[(name, way) for name, ways in FOUR.items() for way in ways], ids="-".join)
def model(request: pytest.FixtureRequest, ran: list[Results]) -> tuple[Results, list[Results]]:
    """What one process found of a model, and what each rank did, sharded in one way."""
    name, way = request.param
    if way not in ran[0][name]:
        pytest.skip("not among the cases of this group")
    return ran[0][name]["alone"], [found[name][way] for found in ran]


def ratios(found: Results, *names: str) -> list[tuple[Any, float]]:
    """The results by some names, with their ratios."""
    return [(found[key], key[-1]) for key in found if key[:-1] in [(name,) for name in names]]


def test_sharding_alone_changes_nothing(model: tuple[Results, list[Results]]) -> None:
    alone, ranks = model
    for found in ranks:
        assert relative(found["sharded"], alone["plain"]) < 1e-5


def test_ratio_zero_is_the_plain_sharded_model(model: tuple[Results, list[Results]]) -> None:
    for found in model[1]:
        if ("toma", 0.0) in found:
            assert torch.equal(found["toma", 0.0], found["sharded"])
            assert found["sent", "toma", 0.0] == found["sent"]
            assert all(status == "skipped" for _, status, *_ in found["regions", "toma", 0.0])


def test_merged_equals_one_process_with_the_same_windows(
    model: tuple[Results, list[Results]],
) -> None:
    """Compiled by the backend, by the door, and block by block."""
    alone, ranks = model
    for found in ranks:
        merged = [pair for pair in ratios(found, "toma", "door", "blocks") if pair[1]]
        assert merged
        for result, ratio in merged:
            assert relative(result, alone["toma", ratio]) < 1e-4
            assert relative(result, alone["plain"]) > 1e-3


def test_memory_is_local(model: tuple[Results, list[Results]]) -> None:
    """Three steps, in which no token is corrected by a neighbour of another rank."""
    alone, ranks = model
    for found in ranks:
        for result, ratio in ratios(found, "refresh"):
            steps = zip(result, alone["refresh", ratio], strict=True)
            assert [relative(*step) < 1e-4 for step in steps] == [True] * len(TIMES)
            assert relative(result[-1], alone["plain"]) > 1e-3


def test_all_regions_that_hold_the_picture_are_merged(model: tuple[Results, list[Results]]) -> None:
    ranks = len(model[1])
    for found in model[1]:
        for key, ratio in [(key, key[-1]) for key in found if key[0] == "regions" and key[-1]]:
            picture = [r for r in found[key] if r[2] % (TOKENS // ranks) == 0]
            assert picture
            for kind, status, tokens, left in picture:
                assert (status, left) == ("merged", tokens * (1 - ratio)), kind


SENT = {
    "flux": (WORDS, TOKENS, 1, 2),
    "qwen": (WORDS, TOKENS, 1, 1),
    "wan": (0, FRAMES * TOKENS, 2, 1),
}
"""Text, tokens, items and attentions of a call that meet other ranks."""


@pytest.mark.parametrize("name", SENT)
def test_every_exchange_sends_as_many_tokens_as_are_left(ran: list[Results], name: str) -> None:
    """An attention trades queries, keys, values and results; a ring gathers two of them."""
    words, tokens, items, attentions = SENT[name]
    shared = words, HEADS * HEAD, len(ran)
    whole = items * exchanged(tokens, *shared, ratio=0.0, item=4)
    for found in ran:
        for way, mine in found[name].items():
            if way == "alone":
                continue
            trades = 4 * attentions * (way != RING)
            gathers = attentions * (way != ULYSSES)
            merged = [key for key in mine if key[0] == "sent" and key[1] != "refresh"]
            for sent, ratio in [(mine["sent"], 0.0), *((mine[key], key[-1]) for key in merged)]:
                left = items * exchanged(tokens, *shared, ratio=ratio, item=4)
                assert sent["traded"] == [left] * trades
                assert sent["gathered"][:-1] == [2 * left] * gathers  # the last is the output
                assert ratio == 0 or left < whole


def test_text_of_ltx_is_exchanged_as_it_is(ran: list[Results]) -> None:
    """Its second attention looks at text, of which each rank has a part."""
    shared = HEADS * HEAD, len(ran)
    for found in ran:
        sent = found["ltx"][ULYSSES]["sent", "toma", 0.5]["traded"]
        left = 2 * exchanged(FRAMES * TOKENS, 0, *shared, ratio=0.5, item=4)
        text = 2 * exchanged(0, WORDS, *shared, ratio=0.5, item=4)
        assert sent == [left] * 5 + [text] * 2 + [left]


def test_keys_of_all_tokens_are_sent_whole(ran: list[Results]) -> None:
    """Queries and results alone are fewer, where attention looks for tokens in all of them."""
    assert KEYS[0.5] == "all"
    part, whole = ((WORDS + n) * 4 * HEADS * HEAD // len(ran) for n in (TOKENS // 2, TOKENS))
    for found in ran:
        for way, mine in found["flux"].items():
            if ("sent", "refresh", 0.5) in mine:
                sent = mine["sent", "refresh", 0.5]
                trades = [part, whole, whole, part] * 2 if way != RING else []
                assert sent["traded"] == trades
                gathers = [2 * whole] * 2 if way in (RING, UNIFIED) else []
                assert sent["gathered"][:-1] == gathers
