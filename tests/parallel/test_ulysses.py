"""Tokens sharded over ranks by diffusers and merged on each: what one process does, in fewer bytes.

Ring attention needs a kernel that a CPU lacks, as the plain model shows.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch

from benchmarks.scale import exchanged
from tests.eager_merge import relative
from tests.parallel import cases, uneven
from tests.parallel.cases import LONG, QUICK, TIMES
from tests.parallel.models import FRAMES, HEAD, HEADS, TOKENS, WORDS
from tests.parallel.ranks import Results, run_ranks

# What the ranks found serves all tests: one worker runs them.
pytestmark = pytest.mark.xdist_group("ranks")
RANKS = [
    pytest.param((2, QUICK), id="2 ranks"),
    *(pytest.param((n, LONG), marks=pytest.mark.ranks, id=f"{n} ranks, more") for n in (2, 4)),
]


@pytest.fixture(scope="module", params=RANKS)
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Results]:
    """What each rank found; one group runs all cases."""
    count, chosen = request.param
    folder = tmp_path_factory.mktemp("ranks")
    return run_ranks(partial(cases.small_models, cases=chosen), count, folder)


@pytest.fixture(params=list(QUICK))
def model(request: pytest.FixtureRequest, ran: list[Results]) -> list[Results]:
    """Of one model."""
    return [found[request.param] for found in ran]


def by_ratio(found: Results, name: str) -> list[float]:
    return [key[1] for key in found if key[0] == name]


def test_sharding_alone_changes_nothing(model: list[Results]) -> None:
    for found in model:
        assert relative(found["sharded"], model[0]["plain"]) < 1e-5


def test_ratio_zero_is_the_plain_sharded_model(model: list[Results]) -> None:
    for found in model:
        assert torch.equal(found["toma", 0.0], found["sharded"])
        assert found["sent", 0.0] == found["sent"]
        assert all(status == "skipped" for _, status, *_ in found["regions", 0.0])


def test_merged_equals_one_process_with_the_same_windows(model: list[Results]) -> None:
    alone = model[0]
    for ratio in by_ratio(alone, "alone"):
        for found in model:
            assert relative(found["toma", ratio], alone["alone", ratio]) < 1e-4
            assert relative(found["toma", ratio], alone["plain"]) > 1e-3


def test_merged_equals_one_process_that_merges_by_hand(ran: list[Results]) -> None:
    hand = ran[0]["flux"]["by hand"]
    for ratio in set(by_ratio(ran[0]["flux"], "toma")) - {0.0}:
        for found in ran:
            assert relative(found["flux"]["toma", ratio], hand["toma", ratio]) < 1e-4


def test_memory_is_local(ran: list[Results]) -> None:
    """Three steps, in which no token is corrected by a neighbour of another rank."""
    hand = ran[0]["flux"]["by hand"]
    for ratio in by_ratio(ran[0]["flux"], "refresh"):
        for found in ran:
            steps = zip(found["flux"]["refresh", ratio], hand["refresh", ratio], strict=True)
            assert [relative(*step) < 1e-4 for step in steps] == [True] * len(TIMES)


def test_all_regions_that_hold_the_picture_are_merged(model: list[Results]) -> None:
    ranks = len(model)
    for found in model:
        for ratio in set(by_ratio(found, "regions")) - {0.0}:
            picture = [r for r in found["regions", ratio] if r[2] % (TOKENS // ranks) == 0]
            assert picture
            for kind, status, tokens, left in picture:
                assert (status, left) == ("merged", tokens * (1 - ratio)), kind


def test_every_exchange_sends_as_many_tokens_as_are_left(ran: list[Results]) -> None:
    ranks = len(ran)
    for found in ran:
        for name, words, tokens, batch, calls in (
            ("flux", WORDS, TOKENS, 1, 8),
            ("qwen", WORDS, TOKENS, 1, 4),
            ("wan", 0, FRAMES * TOKENS, 2, 4),
        ):
            mine = found[name]
            shared = words, HEADS * HEAD, ranks
            whole = batch * exchanged(tokens, *shared, ratio=0.0, item=4)
            assert mine["sent"] == [whole] * calls
            for ratio in by_ratio(mine, "toma"):
                left = batch * exchanged(tokens, *shared, ratio=ratio, item=4)
                assert mine["sent", ratio] == [left] * calls
                assert ratio == 0 or left < whole


def test_keys_of_all_tokens_are_sent_whole(ran: list[Results]) -> None:
    """Queries and results alone are fewer, where attention looks for tokens in all of them."""
    part, whole = ((WORDS + n) * 4 * HEADS * HEAD // len(ran) for n in (TOKENS // 2, TOKENS))
    for found in ran:
        sent = found["flux"]["sent by refresh", 0.5]
        assert sent == [part, whole, whole, part] * 2


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> list[Results]:
    return run_ranks(uneven.refused, 2, tmp_path_factory.mktemp("refused"))


def test_an_uneven_shard_is_refused_by_every_rank(refused: list[Results]) -> None:
    """And the group goes on: nobody waits for anybody."""
    reasons = {tuple(found["reasons"]) for found in refused}
    assert len(reasons) == 1
    assert "ranks exchange unequal shares" in reasons.pop()[0]
    for found in refused:
        assert torch.equal(*found["lower"])
        assert "must be divisible by mesh size" in found["plain"]
        assert found["merged"]


def test_diffusers_ways_around_do_not_compile(refused: list[Results]) -> None:
    """If one does some day, it has to be merged as well, or be refused by a test of its own."""
    for found in refused:
        assert found["cut anyhow"] == ""
        assert "fake tensor" in found["cut anyhow and compiled"]
        assert "does not support return_lse" in found["ring"]
        assert "_scaled_dot_product_flash_attention" in found["ring by flash"]
