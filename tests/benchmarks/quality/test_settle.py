"""Thresholds are found for a share, and ratios for a model."""

from __future__ import annotations

import pytest

from benchmarks.quality.contestant import Cache, Contestant
from benchmarks.quality.flops import Pictures
from benchmarks.quality.painters import EmojiPainter
from benchmarks.quality.settle import nearest, settled
from tests.benchmarks.generators import CAPTIONS

ASKED = Pictures(CAPTIONS[:1], [0], 4)


@pytest.mark.parametrize("wanted", [0.25, 0.5, 0.9])
def test_halving_comes_near(wanted: float) -> None:
    tried: list[float] = []

    def share(threshold: float) -> float:
        tried.append(threshold)
        return round(8 * (1 - threshold)) / 8  # whole steps

    found = nearest(share, wanted)
    assert abs(share(found) - wanted) <= 1 / 16
    assert len(tried) < 10


def test_a_settled_contestant_needs_nothing_more(painter: EmojiPainter) -> None:
    one = Contestant("mag", "cache", cache=Cache("magcache", {"retention_ratio": 0.0}, 0.5))
    cache = settled(painter, one, ASKED).cache
    assert cache is not None
    assert cache.share is None
    assert cache.options["retention_ratio"] == 0.0
    assert 0 < cache.options["threshold"] < 1
    ratios = cache.options["mag_ratios"]
    assert len(ratios) == 4
    assert ratios[0] == 1
    assert ratios[1] != 1
    merged = Contestant("m", "x", {"ratio": 0.5})
    assert settled(painter, merged, ASKED) is merged
