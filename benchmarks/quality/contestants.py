"""What is compared: lists of options, as data."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from benchmarks.quality import caches
from benchmarks.quality.contestant import REFERENCE, Cache, Contestant
from toma_fx.diffusers import TokenMergingConfig
from toma_fx.errors import ConfigError

__all__ = ["REFERENCE", "SELECTIONS", "Contestant", "Field", "distinct", "everyone", "selected"]

_SCHEDULES = ((1, 1), (2, 2), (3, 3), (5, 1), (5, 5), (10, 1), (10, 5), (20, 10))
_SHARES = (0.75, 0.5, 0.25, 0.83, 0.67, 0.58, 0.42, 0.33)  # the first of equal counts is kept
_MOST = 100  # steps of a generation
_JUDGED = 32  # pairs that show whether captions are followed

SELECTIONS: dict[str, tuple[str, ...]] = {
    "all": ("*",),
    "acceptance": (
        *("another *", "in bfloat16"),
        *("75% of the steps", "50% of the steps", "25% of the steps"),
        *("toma 0.25", "toma 0.5", "refresh 0.5", "refresh 0.5, rest_every 2"),
        *("refresh 0.5, dense_steps (-1,)", "refresh 0.5, dense_steps (0, -1)"),
        *("refresh 0.5, extrapolate 0.5", "refresh, dense or resting in turn"),
        *("refresh 0.5, deepcache every 2nd step", "refresh 0.5, magcache*"),
        *("*, half", "taylorseer, every 2nd step", "deepcache, every 2nd step"),
    ),
}
"""Patterns over names. `acceptance`: what a short session can paint and time."""


@dataclass(frozen=True)
class Field:
    """Contestants that can run here, and why the others cannot."""

    runs: list[Contestant]
    skipped: dict[str, str] = field(default_factory=dict)


def everyone(base: dict[str, Any], dtype: str = "float32", model: nn.Module | None = None) -> Field:
    """All contestants.

    Args:
        base: options that every merged contestant begins with, `min_tokens` say.
        dtype: of the reference.
        model: the denoiser, where known: caches are made for some classes only.

    Returns:
        Those whose options this version knows; the others with the reason.
    """
    runs: list[Contestant] = []
    skipped: dict[str, str] = {}
    makers = (_anchors(dtype), _fewer(), _methods(), _keys(), _refresh(), _caches())
    for one in (*(one for maker in makers for one in maker), *_variants(), *_stale()):
        options = None if one.options is None else {**base, **one.options}
        reason = _refused(options) or caches.refused(one.cache, model)
        if reason:
            skipped[one.name] = reason
        else:
            runs.append(Contestant(**{**vars(one), "options": options}))
    return Field(runs, skipped)


def selected(one: Contestant, patterns: Iterable[str]) -> bool:
    """Whether a pattern fits its name; the reference always takes part."""
    named = any(fnmatch.fnmatch(one.name, pattern) for pattern in patterns)
    return named or one.name == REFERENCE


def distinct(found: Field, steps: int) -> Field:
    """Without those that would make as many of `steps` steps as another, and nothing else."""
    counts = {steps: "all steps"}
    runs, skipped = [], dict(found.skipped)
    for one in found.runs:
        count = one.count(steps)
        if one.steps != 1.0 and (count in counts or count < 1):
            skipped[one.name] = f"{count} of {steps} steps, as {counts.get(count, 'nobody')}"
            continue
        if one.steps != 1.0:
            counts[count] = one.name
        runs.append(one)
    return Field(runs, skipped)


def _refused(options: dict[str, Any] | None) -> str | None:
    unknown = set(options or ()) - set(TokenMergingConfig.field_names())
    if unknown:
        return f"this version has no option {', '.join(sorted(unknown))}"
    try:
        TokenMergingConfig(**(options or {}))
    except ConfigError as error:
        return str(error)
    return None


def _anchors(dtype: str) -> Iterable[Contestant]:
    other = "float32" if dtype == "bfloat16" else "bfloat16"
    yield Contestant(REFERENCE, "anchor", main=True)
    yield Contestant("identical rerun", "anchor")
    yield Contestant(f"in {other}", "anchor", dtype=other, most=_JUDGED)
    yield Contestant("another seed", "anchor", seed_shift=10**6, main=True, most=_JUDGED)
    yield Contestant("another caption", "anchor", caption_shift=1, main=True, most=_JUDGED)


def _fewer() -> Iterable[Contestant]:
    for share in _SHARES:
        main = share in (0.75, 0.5, 0.25)
        yield Contestant(f"{share:.0%} of the steps", "fewer steps", steps=share, main=main)
    yield Contestant("one step fewer", "fewer steps", steps=-1)


def _methods() -> Iterable[Contestant]:
    for ratio in (0.25, 0.5, 0.75):
        yield Contestant(f"toma {ratio:g}", "method", {"ratio": ratio}, main=True)
    for method in ("tomesd", "tofu"):
        for ratio in (0.25, 0.5, 0.75):
            options = {"method": method, "ratio": ratio}
            yield Contestant(f"{method} {ratio:g}", "method", options, main=ratio == 0.5)
    yield Contestant("todo 0.75", "method", {"method": "todo", "ratio": 0.75}, main=True)


def _keys() -> Iterable[Contestant]:
    """Keys and values of all tokens, where queries alone are merged."""
    for method in ("toma", "tomesd", "tofu"):
        for ratio in (0.25, 0.5, 0.75):
            options = {"method": method, "ratio": ratio, "keys": "all"}
            yield Contestant(f"{method} {ratio:g}, keys all", "keys", options)
    yield Contestant("toma 0.5, keys computed", "keys", {"ratio": 0.5, "keys": "computed"})


def _refresh() -> Iterable[Contestant]:
    """Memory, with no block left out; then one option at a time at ratio 0.5, then together."""
    yield from (_memory(ratio, main=ratio == 0.5) for ratio in (0.25, 0.5, 0.75))
    yield _memory(0.5, main=True, rest_every=2)
    changes: tuple[dict[str, Any], ...] = (
        *({"history": count} for count in (1, 2)),
        *({"gain": gain} for gain in (0.0, 0.5, 1.0)),
        *({"extrapolate": alpha} for alpha in (0.0, 0.5, 1.0)),
        *({"keys": keys} for keys in ("computed", "all")),
        *({"scope": scope} for scope in ("region", "block", "span")),
        *({"dense_steps": steps} for steps in ((0,), (-1,), (0, -1))),
        {"dense_steps": (0,), "extrapolate": 1.0},
        {"dense_steps": (0,), "rest_every": 2},
        {"rest_every": 2, "extrapolate": 1.0},
    )
    yield from (_memory(0.5, **change) for change in changes)
    yield _memory(0.75, dense_steps=(0,))
    # What a cache does, by this memory: all of every second step, nothing of the others.
    whole = _memory(0.5, rest_every=2, dense_steps=tuple(range(0, _MOST, 2)))
    yield replace(whole, name="refresh, dense or resting in turn", group="refresh, variants")
    for every, ordinal in ((2, "2nd"), (4, "4th")):
        yield _both(Cache("deepcache", {"every": every}), f"deepcache every {ordinal} step")
    yield _both(Cache("magcache", {}, 0.3), "magcache, 30% of the blocks")


def _memory(ratio: float, main: bool = False, **change: Any) -> Contestant:
    options = {"method": "refresh", "ratio": ratio, "skip_blocks": 0, **change}
    name = ", ".join([f"refresh {ratio:g}", *_named(change)])
    group = "refresh, variants" if change and not main else "refresh"
    return Contestant(name, group, options, main=main)


def _both(cache: Cache, words: str) -> Contestant:
    """Memory in what a cache computes."""
    one = _memory(0.5)
    return replace(one, name=f"{one.name}, {words}", group="refresh, variants", cache=cache)


def _caches() -> Iterable[Contestant]:
    """Caches at about half and a quarter of the blocks' cost; see `caches` for each."""
    for every, ordinal in ((2, "2nd"), (5, "5th")):  # six and three of twelve steps, 14 and 7 of 28
        for kind in ("taylorseer", "taylorseer lite"):
            options = {"cache_interval": every, "disable_cache_before_step": 1}
            yield _cache(kind, f"{kind}, every {ordinal} step", **options)
    options = {"cache_interval": 2, "disable_cache_before_step": 1, "max_order": 0}
    yield _cache("taylorseer", "taylorseer, every 2nd step, order 0", **options)
    for share, words in ((0.5, "half"), (0.25, "a quarter")):
        yield _cache("first block", f"first block cache, {words}", share)
    yield _cache("magcache", "magcache, half", 0.5)
    often = {"retention_ratio": 0.1, "max_skip_steps": 6}  # its defaults compute two fifths
    yield _cache("magcache", "magcache, a quarter", 0.25, **often)
    for every, ordinal in ((2, "2nd"), (5, "5th")):
        options = {"spatial_attention_block_skip_range": every}
        yield _cache("fastercache", f"fastercache, attention every {ordinal} step", **options)
    for every, ordinal in ((2, "2nd"), (4, "4th")):
        yield _cache("deepcache", f"deepcache, every {ordinal} step", every=every)


def _cache(kind: str, name: str, share: float | None = None, **options: Any) -> Contestant:
    return Contestant(name, "cache", cache=Cache(kind, options, share))


def _variants() -> Iterable[Contestant]:
    """One option at a time beside the defaults, at ratio 0.5."""
    columns: dict[str, list[dict[str, Any]]] = {
        "order": [{"order": order} for order in ("hilbert", "stripe", "global")],
        "window": [{"window": window} for window in (4, 16)],
        "temperature": [{"temperature": tau} for tau in (1e-2, 0.1)],
        "unmerge": [{"unmerge": "pinv"}],
        "share": [{"share": share} for share in ("block", "region")],
        "scope": [{"scope": "block"}, {"scope": "span", "span": 2}],
        "skip_blocks": [{"skip_blocks": count} for count in (0, 1, 2)],
        "schedule": [
            {"select_every": select, "weigh_every": weigh} for select, weigh in _SCHEDULES
        ],
    }
    for column, changes in columns.items():
        for change in changes:
            name = ", ".join(["toma 0.5", *_named(change)])
            yield Contestant(name, column, {"ratio": 0.5, **change})


def _named(change: dict[str, Any]) -> list[str]:
    return [f"{key} {value}" for key, value in change.items()]


def _stale() -> Iterable[Contestant]:
    """Old plans: the first of each picture for all its steps, and the first picture's for all."""
    once = {"ratio": 0.5, "select_every": 10**6, "weigh_every": 10**6}
    yield Contestant("toma 0.5, one plan a picture", "stale plans", once)
    yield Contestant("toma 0.5, guard off", "stale plans", once, guarded=False)
