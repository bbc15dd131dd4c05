"""Speed of contestants beside the plain model, in turns: whole generations."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import torch

from benchmarks.quality.contestant import REFERENCE, Contestant
from benchmarks.quality.painters import Painter
from benchmarks.quality.produce import Job, paint
from toma_fx.timing import interleaved

_FIRST_STEPS = 4  # in which every graph of a contestant is compiled


def kept(place: Path, backend: str) -> float | None:
    """What an earlier run measured; what another backend took counts for nothing."""
    file = _file(place)
    known = json.loads(file.read_text()) if file.exists() else {}
    return float(known["speedup"]) if known.get("backend") == backend else None


def measure(
    painter: Painter, one: Contestant, job: Job, rounds: int, place: Path, models: dict[str, Any]
) -> None:
    """Median over rounds of plain time over the contestant's, into `speed.json` of its folder.

    Both run in this process one after the other in every round, so that what disturbs a round
    disturbs both. Planning is inside: a generation begins cold. No rounds measure nothing.

    Args:
        painter: of the model.
        one: a contestant.
        job: whose first batch is painted.
        rounds: for the median.
        place: folder of the contestant.
        models: open forms of the denoiser, of the reference and of the contestant, by name.
    """
    if not rounds or kept(place, job.backend) is not None:
        return
    plain = Contestant(REFERENCE, "anchor")
    contestants = {REFERENCE: plain, one.name: one}
    first = slice(0, job.batch)
    for model in models.values():
        painter.paint(job.prompts[first], job.seeds[first], min(_FIRST_STEPS, job.steps), model)
    runs = {
        name: (lambda which=which, name=name: paint(painter, which, job, 0, models[name]))
        for name, which in contestants.items()
    }
    seconds = interleaved(runs, rounds, _device(painter))
    pairs = zip(seconds[REFERENCE], seconds[one.name], strict=True)
    found = statistics.median(a / b for a, b in pairs)
    about = {"speedup": found, "backend": job.backend, "pictures": job.batch, "seconds": seconds}
    _file(place).write_text(json.dumps(about))


def _file(place: Path) -> Path:
    return place / "speed.json"


def _device(painter: Painter) -> torch.device:
    return next(painter.denoiser.parameters()).device
