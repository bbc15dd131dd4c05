"""Who takes part. Options are plain dictionaries: what is not installed is skipped by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from toma_fx.config import METHODS

REFERENCE = "torch.compile"
CHAMPION = "toma"


@dataclass(frozen=True)
class Contestant:
    """One way to run a step.

    Attributes:
        name: as it stands in tables.
        how: key of `start.STARTS`.
        options: for that way of starting.
        merges: runs once for every ratio; else once a picture size.
        variant: a variant of another contestant, raced at one ratio and one size.
        slow_to_compile: its compile takes many minutes on a CPU.
        on_gpus: means something there alone.
    """

    name: str
    how: str
    options: dict[str, Any] = field(default_factory=dict)
    merges: bool = False
    variant: bool = False
    slow_to_compile: bool = False
    on_gpus: bool = False


def _toma(name: str, variant: bool = False, **options: Any) -> Contestant:
    return Contestant(name, "toma", options, merges=True, variant=variant)


def _toma_mode(name: str, mode: str, **more: bool) -> Contestant:
    """Merged, and compiled as `mode` says: a variant, raced beside the same mode unmerged."""
    return Contestant(name, "toma", {"mode": mode}, merges=True, variant=True, **more)


def _tomesd(name: str, variant: bool = False, **options: Any) -> Contestant:
    return Contestant(name, "tomesd", options, merges=True, variant=variant)


_ALL_PARTS = {"merge_attn": True, "merge_crossattn": True, "merge_mlp": True}
_AUTOTUNED = "max-autotune"
_TUNED = "max-autotune-no-cudagraphs"
_GRAPHS = "reduce-overhead"

CONTESTANTS = {
    contestant.name: contestant
    for contestant in (
        Contestant(REFERENCE, "compile"),
        Contestant("eager", "eager"),
        _toma(CHAMPION),
        _toma("toma, scope block", scope="block"),
        _toma("toma, scope span 2", scope="span", span=2),
        *(_toma(method, method=method) for method in METHODS if method != CHAMPION),
        _tomesd("tomesd package, eager", compiled=False, **_ALL_PARTS),
        _tomesd("tomesd package, compiled", compiled=True, **_ALL_PARTS),
        Contestant("first-block cache, every other step", "cache", {"threshold": 0.7}),
        Contestant(_AUTOTUNED, "compile", {"mode": _AUTOTUNED}, slow_to_compile=True),
        _toma_mode("toma, max-autotune", _AUTOTUNED, slow_to_compile=True),
        Contestant(_TUNED, "compile", {"mode": _TUNED}, slow_to_compile=True, on_gpus=True),
        _toma_mode(f"toma, {_TUNED}", _TUNED, slow_to_compile=True, on_gpus=True),
        Contestant(_GRAPHS, "compile", {"mode": _GRAPHS}, variant=True, on_gpus=True),
        _toma_mode(f"toma, {_GRAPHS}", _GRAPHS, on_gpus=True),
        _toma("toma, regions auto", variant=True, regions="auto"),
        _toma("toma, plans every step", variant=True, select_every=1, weigh_every=1),
        _toma("toma, paper's schedule", variant=True, select_every=10, weigh_every=5),
        _toma("toma, order stripe", variant=True, order="stripe"),
        _toma("toma, order hilbert", variant=True, order="hilbert"),
        _toma("toma, order global", variant=True, order="global"),
        _toma("toma, unmerge pinv", variant=True, unmerge="pinv"),
        _tomesd("tomesd package, attention only", variant=True, compiled=True),
    )
}


def lossy(name: str) -> bool:
    """Whether a contestant changes the picture."""
    return CONTESTANTS[name].merges or CONTESTANTS[name].how == "cache"
