"""Which contestants meet on which model, picture size and ratio.

The most telling cases come first, so that a run that is cut short has them. A round is a model
with picture sizes, ratios, and who takes part, a key of `PARTIES`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.race.blocks import BLOCKS, FRAMES
from benchmarks.race.contestants import CHAMPION, CONTESTANTS, REFERENCE, Contestant
from toma_fx.config import METHODS

HALF = 0.5
RATIOS = (HALF, 0.25, 0.75)
_BLOCK = "toma, scope block"
PARTIES = {
    "duo": (REFERENCE, CHAMPION),
    "short": (REFERENCE, "eager", CHAMPION, _BLOCK, "tomesd", "tomesd package, eager"),
    "rivals": (REFERENCE, _BLOCK, *METHODS),
    "main": tuple(name for name, found in CONTESTANTS.items() if not found.variant),
    "all": tuple(CONTESTANTS),
}
CELL = 16  # pixels of a side of a token, in the longest streams that both architectures merge
Size = tuple[int, int]


@dataclass(frozen=True)
class Case:
    """One contestant on one model and picture."""

    model: str
    height: int
    width: int
    contestant: Contestant
    ratio: float | None

    @property
    def key(self) -> str:
        ratio = "" if self.ratio is None else f"/{self.ratio:g}"
        return f"{self.group}/{self.contestant.name}{ratio}"

    @property
    def group(self) -> str:
        return f"{self.model}/{self.height}x{self.width}"

    @property
    def cold(self) -> bool:
        """Compiled with empty caches; the others share theirs, which saves most of a run."""
        return self.contestant.name in (REFERENCE, CHAMPION) and self.ratio in (None, HALF)

    @property
    def labels(self) -> dict[str, Any]:
        """What a record says of its case."""
        return {
            "model": self.model,
            "height": self.height,
            "width": self.width,
            "tokens": FRAMES.get(self.model, 1) * self.height * self.width // CELL**2,
            "contestant": self.contestant.name,
            "ratio": self.ratio,
        }


@dataclass(frozen=True)
class Round:
    model: str
    sizes: tuple[Size, ...]
    ratios: tuple[float, ...]
    who: str

    def cases(self, device: str) -> Iterator[Case]:
        for height, width in self.sizes:
            for contestant, ratio in _entries(self.who, self.ratios, device):
                yield Case(self.model, height, width, contestant, ratio)


def _entries(
    who: str, ratios: tuple[float, ...], device: str
) -> Iterator[tuple[Contestant, float | None]]:
    """Contestants without a ratio with those at the first ratio, then the other ratios."""
    for ratio in ratios:
        for contestant in CONTESTANTS.values():
            if contestant.name not in PARTIES[who] or (contestant.variant and ratio != HALF):
                continue
            if contestant.on_gpus and device == "cpu":
                continue
            if contestant.merges:
                yield contestant, ratio
            elif ratio == ratios[0]:
                yield contestant, None


def _square(*sides: int) -> tuple[Size, ...]:
    return tuple((side, side) for side in sides)


# On a CPU compiling takes longer than running: not everyone runs everywhere.
_CPU = (
    Round("sdxl-stage", _square(512), (HALF,), "all"),
    Round("flux-stage", _square(512), (HALF,), "main"),
    Round("narrow", _square(512, 1024, 2048), (HALF,), "duo"),
    Round("sdxl-stage", _square(512), RATIOS, "rivals"),
    Round("flux-stage", _square(512), RATIOS, "duo"),
    Round("sdxl-stage", (*_square(768), (384, 640)), (HALF,), "rivals"),
    Round("flux-stage", (*_square(768), (384, 640)), (HALF,), "duo"),
)
_CPU_QUICK = (
    Round("sdxl-stage", _square(512), (HALF,), "short"),
    Round("flux-stage", _square(512), (HALF,), "duo"),
    Round("sdxl-stage", _square(512), (0.75,), "duo"),
    Round("sdxl-stage", ((384, 640),), (HALF,), "duo"),
)
_SIZES = ((2048, 2048), (512, 512), (1216, 832))
_GPU = (
    Round("sdxl", _square(1024), (HALF,), "main"),
    Round("flux-dev", _square(1024), (HALF,), "main"),
    *(Round(model, _SIZES, (HALF,), "duo") for model in ("sdxl", "flux-dev")),
    *(Round(model, _square(1024), RATIOS, "all") for model in ("sdxl", "flux-dev")),
    *(Round(model, _SIZES, RATIOS, "main") for model in ("sdxl", "flux-dev")),
)
_GPU_QUICK = (
    *(Round(model, _square(1024), (HALF,), "duo") for model in ("sdxl", "flux-dev")),
    *(Round(model, _square(2048), (HALF,), "duo") for model in ("sdxl", "flux-dev")),
    *(Round(model, _square(1024), RATIOS[1:], "duo") for model in ("sdxl", "flux-dev")),
)
_TOY = (
    Round("sdxl-toy", _square(256), (HALF,), "duo"),
    Round("flux-toy", _square(256), (HALF,), "duo"),
    Round("wan-toy", _square(256), (HALF,), "duo"),
)
_VIDEO = ((480, 832),)
_BLOCKS = tuple(
    Round(name, _VIDEO if name in FRAMES else _square(1024), (HALF,), "rivals") for name in BLOCKS
)
GRIDS = {
    ("cpu", "toy"): _TOY,
    ("cuda", "toy"): _TOY,
    ("cpu", "blocks"): _BLOCKS,
    ("cuda", "blocks"): _BLOCKS,
    ("cpu", "default"): _CPU,
    ("cpu", "quick"): _CPU_QUICK,
    ("cuda", "default"): _GPU,
    ("cuda", "quick"): _GPU_QUICK,
}


def cases_of(
    device: str,
    level: str,
    *,
    models: Iterable[str] = (),
    sizes: Iterable[Size] = (),
    ratios: Iterable[float] = (),
    contestants: Iterable[str] = (),
) -> list[Case]:
    """The cases of a grid in order, each once.

    Args:
        device: `"cpu"` or `"cuda"`.
        level: `"quick"`, `"default"`, `"toy"`, `"blocks"`, or `"all"`, the whole product.
        models: keep only these; likewise `sizes` (height, width), `ratios` and `contestants`.
            Plain `torch.compile` stays in any case: the others are measured beside it.
    """
    rounds = GRIDS[device, "default" if level == "all" else level]
    if level == "all":
        rounds = tuple(Round(r.model, r.sizes, RATIOS, "all") for r in rounds)
    found = {case.key: case for round_ in rounds for case in round_.cases(device)}
    kept = {"model": set(models), "ratio": {*ratios, None}, "size": set(sizes)}
    names = {REFERENCE, *contestants}

    def wanted(case: Case) -> bool:
        return (
            (not kept["model"] or case.model in kept["model"])
            and (not kept["size"] or (case.height, case.width) in kept["size"])
            and (len(kept["ratio"]) == 1 or case.ratio in kept["ratio"])
            and (len(names) == 1 or case.contestant.name in names)
        )

    return [case for case in found.values() if wanted(case)]


def heats(cases: list[Case], size: int) -> Iterator[list[Case]]:
    """Cases of one group that race together: at most `size`, at one ratio where there is one."""
    heat: list[Case] = []
    for case in cases:
        ratios = {other.ratio for other in heat if other.ratio is not None}
        mixed = case.ratio is not None and bool(ratios - {case.ratio})
        if len(heat) == size or mixed:
            yield heat
            heat = []
        heat.append(case)
    if heat:
        yield heat
