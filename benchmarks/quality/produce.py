"""Pictures of every contestant, kept on disk batch by batch: a run that stops goes on.

Several processes share the batches (`crew`); each writes its own files.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import toma_fx
from benchmarks.quality import crew
from benchmarks.quality.contestant import Contestant
from benchmarks.quality.forms import config_of, form
from benchmarks.quality.painters import Painter


@dataclass(frozen=True)
class Job:
    """What to paint: pair `i` is `prompts[i]` from `seeds[i]`.

    Attributes:
        prompts: of all pairs.
        seeds: likewise.
        steps: of the reference.
        batch: pictures of a call.
        backend: that compiles the rewritten graph, and the plain model; "eager" compiles nothing.
    """

    prompts: Sequence[str]
    seeds: Sequence[int]
    steps: int
    batch: int
    backend: str = "inductor"


def produce(painter: Painter, one: Contestant, job: Job, folder: Path, model: Any = None) -> Path:
    """Paint what is missing of a contestant; returns its folder.

    Args:
        painter: of the model.
        one: a contestant; its cache is settled where `model` is not given.
        job: what to paint.
        folder: of the model and number of steps.
        model: the contestant's form of the denoiser, where it is open already.

    Raises:
        ValueError: the folder holds pictures of other options, steps or prompts.
    """
    place = folder / slug(one.name)
    claim(place, one, job)
    member = crew.here()
    starts = crew.shard(range(0, len(job.prompts), job.batch), member)
    mine = [start for start in starts if not _file(place, start).exists()]
    if mine:
        given = nullcontext(model)
        with given if model is not None else form(painter, one, job.steps, job.backend) as run:
            for start in mine:
                pictures = paint(painter, one, job, start, run)
                _write(pictures, _file(place, start))
        note(place, **_merged(one))
    member.wait_for_everyone()
    return place


def paint(painter: Painter, one: Contestant, job: Job, start: int, model: Any) -> Tensor:
    """The batch that begins at pair `start`."""
    rows = range(start, min(start + job.batch, len(job.prompts)))
    prompts = [job.prompts[(row + one.caption_shift) % len(job.prompts)] for row in rows]
    seeds = [job.seeds[row] + one.seed_shift for row in rows]
    return painter.paint(prompts, seeds, one.count(job.steps), model)


def read(place: Path, pairs: int, batch: int) -> Tensor:
    """`[pairs, 3, height, width]` in [0, 1]."""
    files = [_file(place, start) for start in range(0, pairs, batch)]
    return torch.cat([load_file(file)["pictures"] for file in files])[:pairs].float() / 255


def noted(place: Path) -> dict[str, Any]:
    """What was noted beside the pictures: options, and what was merged."""
    found: dict[str, Any] = json.loads(_about(place).read_text())
    return found


def slug(name: str) -> str:
    """A name as a folder's."""
    return "".join(char if char.isalnum() or char == "." else "-" for char in name)


def claim(place: Path, one: Contestant, job: Job) -> None:
    """Pictures of another question are never taken for an answer to this one."""
    member = crew.here()
    if member.is_main_process:
        options = None if one.options is None else asdict(config_of(one.options))
        asked = {**asdict(one), "options": options}
        for irrelevant in ("main", "most", "group"):
            del asked[irrelevant]
        whole = {"contestant": asked, "steps": job.steps, "batch": job.batch}
        about = json.loads(json.dumps(whole))
        if not _about(place).exists():
            place.mkdir(parents=True, exist_ok=True)
            _save({"asked": about}, place)
        elif noted(place)["asked"] != about:
            raise ValueError(f"{place} holds pictures of other options: choose another --work")
    member.wait_for_everyone()


def note(place: Path, **more: Any) -> None:
    """Add to what is noted beside the pictures; the first process writes."""
    if crew.here().is_main_process:
        _save({**noted(place), **more}, place)


def _merged(one: Contestant) -> dict[str, int]:
    if one.options is None:
        return {}
    report = toma_fx.last_report()
    return {
        "merged": len(report.merged),
        "regions": len(report.regions),
        "flops_saved": report.flops_before - report.flops_after,  # of a call, as predicted
    }


def _write(pictures: Tensor, file: Path) -> None:
    new = file.with_suffix(".new")
    save_file({"pictures": (pictures.clamp(0, 1) * 255).round().byte()}, new)
    new.replace(file)


def _save(about: dict[str, Any], place: Path) -> None:
    """Whole or not at all: others may read it at any time."""
    new = _about(place).with_suffix(".new")
    new.write_text(json.dumps(about))
    new.replace(_about(place))


def _about(place: Path) -> Path:
    return place / "about.json"


def _file(place: Path, start: int) -> Path:
    return place / f"{start:05d}.safetensors"
