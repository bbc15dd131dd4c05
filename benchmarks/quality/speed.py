"""Seconds a picture of contestants beside the plain model, in turns: whole generations."""

from __future__ import annotations

import json
import statistics
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from benchmarks.quality.contestants import REFERENCE, Contestant
from benchmarks.quality.painters import Painter
from benchmarks.quality.produce import Job, denoiser, paint, slug
from toma_fx.timing import interleaved


def speedup(painter: Painter, one: Contestant, job: Job, rounds: int, folder: Path) -> float | None:
    """Median over rounds of plain time over the contestant's; kept in `speed.json` of its folder.

    Both run in this process one after the other in every round, so that what disturbs a round
    disturbs both. Planning is inside: a generation begins cold. No rounds only look for what an
    earlier run measured; what another backend took counts for nothing.
    """
    file = folder / slug(one.name) / "speed.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    if known.get("backend") == job.backend:
        return float(known["speedup"])
    if not rounds:
        return None
    plain = Contestant(REFERENCE, "anchor")
    with ExitStack() as stack:
        models = {
            name: stack.enter_context(denoiser(painter, which, job.backend))
            for name, which in ((REFERENCE, plain), (one.name, one))
        }
        runs = {
            name: (lambda which=which, name=name: _generation(painter, which, job, models[name]))
            for name, which in ((REFERENCE, plain), (one.name, one))
        }
        _warm(painter, job, models)
        seconds = interleaved(runs, rounds, _device(painter))
    pairs = zip(seconds[REFERENCE], seconds[one.name], strict=True)
    found = statistics.median(a / b for a, b in pairs)
    kept: dict[str, Any] = {"speedup": found, "backend": job.backend, "seconds": seconds}
    file.write_text(json.dumps(kept))
    return found


def _warm(painter: Painter, job: Job, models: dict[str, Any]) -> None:
    """One step each: what compiles has compiled."""
    for model in models.values():
        painter.paint(job.prompts[: job.batch], job.seeds[: job.batch], 1, model)


def _generation(painter: Painter, one: Contestant, job: Job, model: Any) -> None:
    paint(painter, one, job, 0, model)


def _device(painter: Painter) -> torch.device:
    return next(painter.denoiser.parameters()).device
