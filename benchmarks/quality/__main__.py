"""Plain against merged, at the same seeds and captions.

    python -m benchmarks.quality --model emoji-sdxl
    python -m benchmarks.quality --model emoji-flux --quick --out build/quick
    accelerate launch -m benchmarks.quality --model FOLDER --dino FOLDER --pairs 3000 --steps 50

A run that stops goes on where it stopped. `--pairs 150 --ablation-pairs 150 --prompts FILE` with 50
prompts is the paper's protocol of ablations.
"""

from __future__ import annotations

import argparse
import fnmatch
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from rich.console import Console
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import describe
from benchmarks.quality import plots, report, settings
from benchmarks.quality.contestants import REFERENCE, Contestant, Field, everyone
from benchmarks.quality.painters import Painter
from benchmarks.quality.produce import Job, noted, produce, read, slug
from benchmarks.quality.report import Row
from benchmarks.quality.score import Scores, kept
from benchmarks.quality.speed import speedup

_SHOWN = ("toma 0.25", "toma 0.5", "toma 0.75", "tomesd 0.5", "tofu 0.5", "todo 0.75")
_ROWS = 12  # of a grid


class Run:
    """One model: its painter, job, judge and folders."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.console = given, Console(width=110, highlight=False)
        device = torch.device(given.device) if given.device else PartialState().device
        self.painter: Painter = settings.painter_of(given, device)
        self.job: Job = settings.job_of(given)
        base = {"regions": "all", "min_tokens": given.min_tokens, "skip_blocks": self.dense}
        self.field: Field = everyone(base, given.dtype)
        self.runs = [one for one in self.field.runs if self._wanted(one)]
        self.folder = given.work / self.painter.name
        self.judge, self.missing = settings.judge_of(given, self.job, device)

    @property
    def dense(self) -> int:
        """First blocks of each class that no contestant merges, where it does not say itself."""
        asked: int | None = self.given.skip_blocks
        return self.painter.dense_blocks if asked is None else asked

    def _wanted(self, one: Contestant) -> bool:
        if self.given.quick and not one.main:
            return False
        named = any(fnmatch.fnmatch(one.name, pattern) for pattern in self.given.only)
        return named or one.name == REFERENCE

    def paint(self) -> None:
        """All pictures, the reference's first."""
        for one in self.runs:
            self.console.print(f"{self.painter.name}: {one.name}", style="dim")
            produce(self.painter, one, self._job(one), self.folder)

    def rows(self) -> list[Row]:
        """Every contestant's, in order; what is on disk already is read."""
        if self.judge.data is None:
            place = self.folder / slug(REFERENCE)
            self.judge.data = read(place, len(self.job.prompts), self.job.batch)
            self.missing["real pictures"] = "KID and FID are to the plain model's pictures"
        return [self._row(one) for one in self.runs]

    def _row(self, one: Contestant) -> Row:
        self.console.print(f"scoring {one.name}", style="dim")
        job, place = self._job(one), self.folder / slug(one.name)
        pairs, batch = len(job.prompts), job.batch

        def compute() -> Scores:
            made = read(place, pairs, batch)
            reference = read(self.folder / slug(REFERENCE), pairs, batch)
            return self.judge.score(made, reference, job.prompts, (one.name, REFERENCE))

        asked = {"pairs": pairs, "networks": self._networks()}
        found = kept(place / "scores.json", compute, asked)
        steps = one.count(job.steps)
        speed, flops = self._speed(one, steps), self._flops(one, steps, place)
        merges = one.options is not None
        return Row(one.name, one.group, pairs, steps, merges, speed, flops, *found)

    def _networks(self) -> list[str]:
        others = {"inception": self.judge.inception, "clip": self.judge.clip}
        return [*self.judge.features, *(name for name, network in others.items() if network)]

    def _speed(self, one: Contestant, steps: int) -> float | None:
        if one.options is None:  # steps cost alike, whatever they draw
            return None if one.dtype else self.job.steps / steps
        job = replace(self.job, batch=self.given.timed)
        return speedup(self.painter, one, job, self.given.rounds, self.folder)

    def _flops(self, one: Contestant, steps: int, place: Path) -> float | None:
        if one.options is None:
            return steps / self.job.steps
        return 1 - noted(place)["flops_saved"] / self._total()

    def _total(self) -> int:
        """FLOPs of one call of the plain denoiser, with attention as two matmuls."""
        if not hasattr(self, "_counted"):
            batch = slice(0, self.job.batch)
            with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
                self.painter.paint(self.job.prompts[batch], self.job.seeds[batch], 1, None)
            self._counted = counter.get_total_flops()
        return self._counted

    def _job(self, one: Contestant) -> Job:
        if one.main:
            return self.job
        count = min(self.given.ablation_pairs, len(self.job.prompts))
        prompts, seeds = self.job.prompts[:count], self.job.seeds[:count]
        return replace(self.job, prompts=prompts, seeds=seeds)

    def write(self, rows: list[Row]) -> None:
        out, name = self.given.out, self.painter.name
        key = next(iter(self.judge.features), "perceptual")
        notes = [*notes_of(self), *gate(rows, key), *report.verdicts(rows, key)]
        report.write(out, name, rows, {**describe(), **self._about()}, notes, key)
        if any(key in row.found for row in rows):
            plots.pareto(rows, key, f"{name}: {len(self.job.prompts)} pairs", out / f"{name}.png")
        shown = [REFERENCE, *(one.name for one in self.runs if one.name in _SHOWN)]
        pictures = {
            name: read(self.folder / slug(name), self.job.batch, self.job.batch) for name in shown
        }
        count = min(_ROWS, self.job.batch)
        plots.grid(pictures, self.job.prompts[:count], out / f"{name}-grid.png")
        for file in sorted(out.iterdir()):
            if file.stem in (name, f"{name}-grid"):
                self.console.print(f"wrote {file}")

    def _about(self) -> dict[str, Any]:
        given = {k: str(v) for k, v in vars(self.given).items() if v not in (None, [])}
        return {"settings": given, "skipped": self.field.skipped, "missing": self.missing}


def notes_of(run: Run) -> list[str]:
    """What stands beside every table."""
    emoji = run.given.model in settings.NAMES
    notes = [
        f"Means of pairs of equal seed and caption, {run.job.steps} steps, with 95 % intervals "
        "(bootstrap over pairs; KID: over subsets).",
        "SSCD is a detector of copies, not DINO; the perceptual distance has the form of LPIPS on "
        "EfficientNet-lite0 without LPIPS's learned weights; lite0 distance is the cosine distance "
        "of its features.",
        f"Speed: generations of {run.given.timed} pictures in turns with the plain model, in "
        f"{run.given.dtype}, backend {run.given.backend}; of fewer steps, their number.",
    ]
    if emoji:
        millions = sum(p.numel() for p in run.painter.denoiser.parameters()) / 1e6
        notes.append(
            f"The model has {millions:.1f} M parameters and draws emoji of "
            f"{settings.pixels_of(run.given)} pixels: it is neither SDXL nor Flux."
        )
    if run.dense:
        notes.append(
            f"The first {run.dense} blocks of each class stay dense in every row that merges and "
            "does not say otherwise."
        )
    notes += [f"Absent: {name}: {reason}." for name, reason in run.missing.items()]
    notes += [f"Skipped: {name}: {reason}." for name, reason in run.field.skipped.items()]
    return notes


class GateError(RuntimeError):
    """The generator does not follow its captions: no figure would mean anything."""


def gate(rows: list[Row], key: str) -> list[str]:
    """Two seeds of one caption must be closer than two captions; says by how much.

    Raises:
        GateError: they are not.
    """
    found = {row.name: row.found[key] for row in rows if key in row.found}
    if not found:
        return ["Gate: not judged: no network that reads pictures is installed."]
    if not {"another seed", "another caption"} <= found.keys():
        return []
    near, far = found["another seed"], found["another caption"]
    text = f"two seeds of a caption are {near.mean:.3g} apart, two captions {far.mean:.3g} ({key})"
    if near.high >= far.low:
        raise GateError(f"nothing is written: {text}")
    return [f"Gate: {text}."]


def main(arguments: list[str] | None = None) -> int:
    given = settings.parser().parse_args(arguments)
    if given.quick:
        given.pairs, given.ablation_pairs, given.steps = 32, 32, 8
    run = Run(given)
    run.paint()
    if PartialState().is_main_process:
        try:
            run.write(run.rows())
        except GateError as error:
            run.console.print(str(error))
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
