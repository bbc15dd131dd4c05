"""Pictures of every contestant, kept on disk batch by batch: a run that stops goes on.

Several processes (`accelerate launch`, `torchrun`) share the batches; each writes its own files.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import Tensor

import toma_fx
from benchmarks.quality.contestants import Contestant
from benchmarks.quality.painters import Cast, Painter
from toma_fx import TomaConfig, guard


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


def produce(painter: Painter, one: Contestant, job: Job, folder: Path) -> Path:
    """Paint what is missing of a contestant; returns its folder.

    Raises:
        ValueError: the folder holds pictures of other options, steps or prompts.
    """
    place = folder / slug(one.name)
    state = PartialState()
    if state.is_main_process:
        _claim(place, one, job)
    state.wait_for_everyone()
    starts = range(0, len(job.prompts), job.batch)
    missing = [start for start in starts if not _file(place, start).exists()]
    mine = missing[state.process_index :: state.num_processes]
    if mine:
        with denoiser(painter, one, job.backend) as model:
            for start in mine:
                pictures = paint(painter, one, job, start, model)
                _write(pictures, _file(place, start))
            _note(place, one)
    state.wait_for_everyone()
    return place


def paint(painter: Painter, one: Contestant, job: Job, start: int, model: Any) -> Tensor:
    """The batch that begins at pair `start`."""
    rows = range(start, min(start + job.batch, len(job.prompts)))
    prompts = [job.prompts[(row + one.caption_shift) % len(job.prompts)] for row in rows]
    seeds = [job.seeds[row] + one.seed_shift for row in rows]
    return painter.paint(prompts, seeds, one.count(job.steps), model)


@contextmanager
def denoiser(painter: Painter, one: Contestant, backend: str) -> Iterator[Any]:
    """The contestant's form of the painter's denoiser."""
    torch._dynamo.reset()
    model = painter.denoiser
    if one.dtype is not None:
        dtype = getattr(torch, one.dtype)
        inner = model.model if isinstance(model, Cast) else model
        model = Cast(copy.deepcopy(inner).to(dtype), dtype)
    if one.options is None:
        yield model if backend == "eager" else torch.compile(model, backend=backend)
        return
    options = {**one.options, "inner_backend": backend}
    unguarded = mock.patch("toma_fx.passes.rewrite.clock.decide", _keep_for_ever)
    with torch.no_grad(), _nothing() if one.guarded else unguarded:
        yield torch.compile(model, backend="toma", options=options)


def read(place: Path, pairs: int, batch: int) -> Tensor:
    """`[pairs, 3, height, width]` in [0, 1]."""
    files = [_file(place, start) for start in range(0, pairs, batch)]
    return torch.cat([load_file(file)["pictures"] for file in files])[:pairs].float() / 255


def noted(place: Path) -> dict[str, Any]:
    """What was noted beside the pictures: options, and what was merged."""
    return json.loads((place / "about.json").read_text())


def slug(name: str) -> str:
    """A name as a folder's."""
    return "".join(char if char.isalnum() or char == "." else "-" for char in name)


def _claim(place: Path, one: Contestant, job: Job) -> None:
    """Pictures of another question are never taken for an answer to this one."""
    options = None if one.options is None else asdict(TomaConfig(**one.options))
    about_one = {**asdict(one), "options": options, "main": None}
    asked = json.loads(json.dumps({"contestant": about_one, "steps": job.steps}))
    about = place / "about.json"
    if about.exists():
        if noted(place)["asked"] != asked:
            raise ValueError(f"{place} holds pictures of other options: choose another --work")
        return
    place.mkdir(parents=True, exist_ok=True)
    about.write_text(json.dumps({"asked": asked}))


def _note(place: Path, one: Contestant) -> None:
    if one.options is None:
        return
    report = toma_fx.last_report()
    more = {
        "merged": len(report.merged),
        "regions": len(report.regions),
        "flops_saved": report.flops_before - report.flops_after,
    }
    (place / "about.json").write_text(json.dumps({**noted(place), **more}))


def _write(pictures: Tensor, file: Path) -> None:
    new = file.with_suffix(".new")
    save_file({"pictures": (pictures.clamp(0, 1) * 255).round().byte()}, new)
    new.replace(file)


def _file(place: Path, start: int) -> Path:
    return place / f"{start:05d}.safetensors"


def _keep_for_ever(memory: Tensor, tally: Tensor, *seen: Any) -> tuple[Tensor, Tensor, Tensor]:
    """`guard.decide` without its judgement: plan once, reuse for ever."""
    _, memory, after = guard.decide(memory, tally, *seen)
    phase = torch.where(tally[guard.FRESH] == guard.COLD, guard.SELECT, guard.REUSE)
    return phase.to(torch.int32), memory, after


@contextmanager
def _nothing() -> Iterator[None]:
    yield
