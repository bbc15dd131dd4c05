"""FLOPs are counted as they run, in whatever form."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.quality import flops
from benchmarks.quality.contestant import Cache, Contestant
from benchmarks.quality.flops import Pictures
from benchmarks.quality.painters import EmojiPainter
from tests.benchmarks.generators import CAPTIONS

ASKED = Pictures(CAPTIONS[:1], [0], 4)
MERGE = {"ratio": 0.5, "min_tokens": 16, "window": 4, "regions": "all"}


def count(painter: EmojiPainter, one: Contestant, asked: Pictures = ASKED) -> int:
    with flops.counting(painter, one, asked.steps) as counted:
        return counted(asked)


def merged(**more: Any) -> Contestant:
    return Contestant("merged", "x", {**MERGE, **more})


@pytest.mark.filterwarnings("ignore:toma_fx merged nothing")
def test_plain_is_counted_alike_in_both_ways(painter: EmojiPainter) -> None:
    plain = flops.plain(painter, ASKED)
    assert 0 < plain.blocks < plain.all
    assert count(painter, Contestant("plain", "anchor")) == plain.all
    assert count(painter, merged(ratio=0.0)) == plain.all  # through the compiler
    half = flops.plain(painter, Pictures(CAPTIONS[:1], [0], 2))
    assert half.all * 2 == plain.all


def test_merging_saves_and_planning_costs(painter: EmojiPainter) -> None:
    plain = flops.plain(painter, ASKED)
    often, once = (
        count(painter, merged(select_every=every, weigh_every=every)) for every in (1, 10**6)
    )
    assert 0 < once < often < plain.all
    assert 0 < plain.blocks_left(often) < 1


def test_a_cache_of_every_second_step_computes_half(painter: EmojiPainter) -> None:
    options = {"cache_interval": 2, "disable_cache_before_step": 1}
    plain = flops.plain(painter, ASKED)
    left = count(painter, Contestant("c", "cache", cache=Cache("taylorseer lite", options)))
    assert plain.blocks_left(left) == pytest.approx(0.5, abs=0.02)  # and of the last projection


def test_deepcache_saves_more_than_blocks(unet: EmojiPainter) -> None:
    plain = flops.plain(unet, ASKED)
    left = count(unet, Contestant("c", "cache", cache=Cache("deepcache", {"every": 2})))
    assert plain.all / 2 < left < plain.all * 0.75
