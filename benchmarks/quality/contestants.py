"""What is compared: lists of options, as data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from toma_fx.config import TomaConfig
from toma_fx.errors import ConfigError

REFERENCE = "plain"
_SCHEDULES = ((1, 1), (2, 2), (3, 3), (5, 1), (5, 5), (10, 1), (10, 5), (20, 10))


@dataclass(frozen=True)
class Contestant:
    """One way to make the pictures; what is not given is as in the reference.

    Attributes:
        name: of its row, and of its folder.
        group: of rows that are read together.
        options: of the merging backend; None does not merge.
        steps: share of the reference's denoising steps, or a number to add where negative.
        seed_shift: added to every seed.
        caption_shift: every picture takes the caption so many places further on.
        dtype: of the denoiser; None is the reference's.
        guarded: False keeps the plans of the very first step for ever.
        main: one of the few rows that are made of all pairs also in a short run.
    """

    name: str
    group: str
    options: dict[str, Any] | None = None
    steps: float = 1.0
    seed_shift: int = 0
    caption_shift: int = 0
    dtype: str | None = None
    guarded: bool = True
    main: bool = False

    def count(self, steps: int) -> int:
        """Denoising steps where the reference makes `steps`."""
        return steps + int(self.steps) if self.steps < 0 else max(1, round(self.steps * steps))


@dataclass(frozen=True)
class Field:
    """Contestants that can run here, and why the others cannot."""

    runs: list[Contestant]
    skipped: dict[str, str] = field(default_factory=dict)


def everyone(base: dict[str, Any], dtype: str = "float32") -> Field:
    """All contestants.

    Args:
        base: options that every merged contestant begins with, `min_tokens` say.
        dtype: of the reference.

    Returns:
        Those whose options this version knows; the others with the reason.
    """
    runs, skipped = [], {}
    for one in (*_anchors(dtype), *_methods(), *_variants(), *_stale()):
        options = None if one.options is None else {**base, **one.options}
        reason = _refused(options)
        if reason:
            skipped[one.name] = reason
        else:
            runs.append(Contestant(**{**vars(one), "options": options}))
    return Field(runs, skipped)


def _refused(options: dict[str, Any] | None) -> str | None:
    unknown = set(options or ()) - set(TomaConfig.field_names())
    if unknown:
        return f"this version has no option {', '.join(sorted(unknown))}"
    try:
        TomaConfig(**(options or {}))
    except ConfigError as error:
        return str(error)
    return None


def _anchors(dtype: str) -> Iterable[Contestant]:
    other = "float32" if dtype == "bfloat16" else "bfloat16"
    yield Contestant(REFERENCE, "anchor", main=True)
    yield Contestant("identical rerun", "anchor")
    yield Contestant(f"in {other}", "anchor", dtype=other)
    yield Contestant("one step fewer", "anchor", steps=-1)
    yield Contestant("another seed", "anchor", seed_shift=10**6, main=True)
    yield Contestant("another caption", "anchor", caption_shift=1, main=True)
    for share in (0.8, 0.7, 0.6, 0.5, 0.4, 0.3):
        yield Contestant(f"{share:.0%} of the steps", "fewer steps", steps=share)


def _methods() -> Iterable[Contestant]:
    for ratio in (0.25, 0.5, 0.75):
        yield Contestant(f"toma {ratio:g}", "method", {"ratio": ratio}, main=True)
    for method in ("tomesd", "tofu"):
        for ratio in (0.25, 0.5, 0.75):
            options = {"method": method, "ratio": ratio}
            yield Contestant(f"{method} {ratio:g}", "method", options, main=ratio == 0.5)
    yield Contestant("todo 0.75", "method", {"method": "todo", "ratio": 0.75}, main=True)


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
            values = ", ".join(f"{key} {value}" for key, value in change.items())
            yield Contestant(f"toma 0.5, {values}", column, {"ratio": 0.5, **change})


def _stale() -> Iterable[Contestant]:
    """Old plans: the first of each picture for all its steps, and the first picture's for all."""
    once = {"ratio": 0.5, "select_every": 10**6, "weigh_every": 10**6}
    yield Contestant("toma 0.5, one plan a picture", "stale plans", once)
    yield Contestant("toma 0.5, guard off", "stale plans", once, guarded=False)
