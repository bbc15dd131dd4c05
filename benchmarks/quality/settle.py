"""Thresholds of caches for a share of the blocks' work, and the ratios that MagCache asks for.

Both belong to a model and a number of steps, and are found on the first pictures of a job.
"""

from __future__ import annotations

import ast
import io
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from typing import Any

from benchmarks.quality import caches, flops
from benchmarks.quality.contestant import Cache, Contestant
from benchmarks.quality.flops import Pictures
from benchmarks.quality.painters import Painter

_HIGHEST, _HALVINGS = 1.0, 7  # of a threshold; both caches measure relative change


def settled(painter: Painter, one: Contestant, asked: Pictures) -> Contestant:
    """A contestant whose cache needs nothing more; others as they are.

    Args:
        painter: of the model.
        one: a contestant.
        asked: a generation to settle on, as large as those to come: decisions are a batch's.
    """
    cache = one.cache
    if cache is None:
        return one
    if cache.kind == "magcache":
        cache = _with(cache, mag_ratios=_ratios(painter, asked))
    if cache.share is not None:
        threshold = _threshold(painter, one, cache, asked)
        cache = replace(_with(cache, threshold=threshold), share=None)
    return replace(one, cache=cache)


def _threshold(painter: Painter, one: Contestant, cache: Cache, asked: Pictures) -> float:
    """Of those tried, the one whose share is nearest."""
    plain = flops.plain(painter, asked)

    def share(threshold: float) -> float:
        tried = replace(_with(cache, threshold=threshold), share=None)
        with flops.counting(painter, replace(one, cache=tried), asked.steps) as count:
            return plain.blocks_left(plain.left(one, count(asked)))

    assert cache.share is not None
    return nearest(share, cache.share)


def nearest(share: Callable[[float], float], wanted: float) -> float:
    """A threshold whose share, which falls as it rises, is near to the wanted one: by halving."""
    low, high, tried = 0.0, _HIGHEST, {}
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        tried[middle] = share(middle)
        if tried[middle] > wanted:
            low = middle
        else:
            high = middle
    return min(tried, key=lambda threshold: abs(tried[threshold] - wanted))


def _ratios(painter: Painter, asked: Pictures) -> list[float]:
    """What MagCache prints in the end of a generation that calibrates it."""
    printed = io.StringIO()
    calibrating = Cache("magcache", {"calibrate": True})
    open_form = caches.cached(painter, calibrating, asked.steps, "eager")
    with open_form as model, redirect_stdout(printed):
        painter.paint(asked.prompts, asked.seeds, asked.steps, model)
    found: list[float] = ast.literal_eval(printed.getvalue().strip().splitlines()[-1])
    return found


def _with(cache: Cache, **options: Any) -> Cache:
    return replace(cache, options={**cache.options, **options})
