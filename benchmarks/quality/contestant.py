"""One way to make the pictures, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

REFERENCE = "plain"


@dataclass(frozen=True)
class Cache:
    """A cache of whole steps, or of whole blocks in them, that decides on the host.

    Attributes:
        kind: a key of `caches.HOOKS`, or `deepcache`.
        options: of its configuration.
        share: of the blocks' FLOPs for which its threshold is settled; None where the options
            alone say how much is computed.
    """

    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    share: float | None = None


@dataclass(frozen=True)
class Contestant:
    """One way to make the pictures; what is not given is as in the reference.

    Attributes:
        name: of its row, and of its folder.
        group: of rows that are read together.
        options: of the merging backend; None does not merge. Those that only
            `toma_fx.diffusers` knows need the step, and run behind that door.
        steps: share of the reference's denoising steps, or a number to add where negative.
        seed_shift: added to every seed.
        caption_shift: every picture takes the caption so many places further on.
        dtype: of the denoiser; None is the reference's.
        guarded: False keeps the plans of the very first step for ever.
        main: one of the few rows that are made of all pairs also in a short run.
        most: pairs at most, however many are asked for.
        cache: that computes less of some steps; None computes each as the reference does.
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
    most: int | None = None
    cache: Cache | None = None

    @property
    def shortens(self) -> bool:
        """Whether a step itself costs less than the reference's, not only their number."""
        return self.options is not None or self.cache is not None

    @property
    def apart(self) -> bool:
        """Whether blocks are merged one by one, between what a cache decides on the host."""
        if self.options is None or self.cache is None:
            return False
        return self.cache.kind != "deepcache"

    def count(self, steps: int) -> int:
        """Denoising steps where the reference makes `steps`."""
        return steps + int(self.steps) if self.steps < 0 else max(1, round(self.steps * steps))
