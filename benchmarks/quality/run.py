"""One model at one number of steps: its contestants, their pictures, costs and scores on disk."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from benchmarks.quality import crew, flops, settings, speed
from benchmarks.quality.contestant import REFERENCE, Contestant
from benchmarks.quality.contestants import distinct, everyone, selected
from benchmarks.quality.flops import Pictures
from benchmarks.quality.forms import form
from benchmarks.quality.painters import Painter
from benchmarks.quality.produce import Job, claim, note, noted, produce, read, slug
from benchmarks.quality.rows import Row
from benchmarks.quality.score import Judge, Scores, kept
from benchmarks.quality.settle import settled


class Run:
    """One model at one number of steps.

    Args:
        given: the command line.
        painter: of the model.
        judge: of the pictures.
        steps: of the reference.
    """

    def __init__(
        self, given: argparse.Namespace, painter: Painter, judge: Judge, steps: int
    ) -> None:
        self.given, self.painter, self.judge, self.steps = given, painter, judge, steps
        self.job: Job = settings.job_of(given, steps)
        dense = painter.dense_blocks if given.skip_blocks is None else given.skip_blocks
        self.dense = dense  # first blocks of each class that merge nowhere, unless a row says so
        base = {"regions": "all", "min_tokens": given.min_tokens, "skip_blocks": dense}
        known = everyone(base, given.dtype, painter.denoiser)
        wanted = [one for one in known.runs if self._wanted(one)]
        self.field = distinct(replace(known, runs=wanted), steps)
        self.runs = {one.name: one for one in self.field.runs}
        self.name = f"{painter.name}-{steps}"
        self.folder = given.work / painter.name / str(steps)
        self.console = Console(width=110, highlight=False)

    def _wanted(self, one: Contestant) -> bool:
        return (one.main or not self.given.quick) and selected(one, settings.patterns(self.given))

    def place(self, one: Contestant) -> Path:
        return self.folder / slug(one.name)

    def claim(self, one: Contestant) -> None:
        """Its folder for its pictures; raises `ValueError` where it holds others."""
        claim(self.place(one), one, self._job(one))

    def settled(self, one: Contestant) -> Contestant:
        """With what its cache needs; found once, and noted beside its pictures."""
        if one.cache is None:
            return one
        self.claim(one)
        known = noted(self.place(one)).get("settled")
        if known is None:
            self._say(f"settling {one.name}")
            known = settled(self.painter, one, self._first(one)).cache.options
            note(self.place(one), settled=known)
        return replace(one, cache=replace(one.cache, options=known, share=None))

    def make(self, one: Contestant, model: Any, reference: Any) -> None:
        """Pictures and speed of a contestant, where they are missing.

        Args:
            one: a contestant.
            model: its form of the denoiser, open.
            reference: the plain model's.
        """
        self._say(one.name)
        job = self._job(one)
        place = produce(self.painter, one, job, self.folder, model)
        if one.shortens and crew.here().is_main_process:
            models = {REFERENCE: reference, one.name: model}
            speed.measure(self.painter, one, job, self.given.rounds, place, models)
        crew.here().wait_for_everyone()

    def counted(self, one: Contestant) -> bool:
        """Whether its FLOPs are noted, or follow from its steps."""
        return not one.shortens or "flops" in noted(self.place(one))

    def count(self, one: Contestant, count: Callable[[Pictures], int]) -> None:
        """Note what a contestant computes, by what `flops.counting` gave."""
        asked = self._first(one)
        plain = flops.plain(self.painter, asked)
        left = plain.left(one, count(asked))
        deep = one.cache is not None and one.cache.kind == "deepcache"  # saves convolutions too
        blocks = None if deep else plain.blocks_left(left)
        note(self.place(one), flops=left / plain.all, blocks=blocks)

    def _first(self, one: Contestant) -> Pictures:
        """A generation to count: a whole batch where that decides what is computed."""
        pictures = slice(self.job.batch if one.cache and one.cache.share else 1)
        return Pictures(self.job.prompts[pictures], self.job.seeds[pictures], self.steps)

    def rows(self) -> list[Row]:
        """Every contestant's, in order, from what is on disk."""
        if self.judge.data is None:
            self.judge = replace(self.judge, data=self._pictures(REFERENCE), known={})
        return [self._row(one) for one in self.runs.values()]

    def _row(self, one: Contestant) -> Row:
        self._say(f"scoring {one.name}")
        job, place = self._job(one), self.place(one)
        pairs, steps = len(job.prompts), one.count(self.steps)

        def compute() -> Scores:
            made, reference = (self._pictures(name, pairs) for name in (one.name, REFERENCE))
            places = (f"{self.steps}: {one.name}", f"{self.steps}: {REFERENCE}")
            return self.judge.score(made, reference, job.prompts, places)

        asked = {"pairs": pairs, "networks": self.judge.names}
        found = kept(place / "scores.json", compute, asked)
        speedup, share, blocks = self._costs(one, steps / self.steps)
        start = one.name, one.group, pairs, steps, one.shortens
        return Row(*start, speedup, share, *found, blocks=blocks)

    def _costs(self, one: Contestant, share: float) -> tuple[float | None, float, float | None]:
        """Speed, FLOPs and blocks' FLOPs: steps cost alike, whatever they draw."""
        if not one.shortens:
            return None if one.dtype else 1 / share, share, share
        known = noted(self.place(one))
        return speed.kept(self.place(one), self.job.backend), known["flops"], known["blocks"]

    def _pictures(self, name: str, pairs: int | None = None) -> Tensor:
        pairs = len(self.job.prompts) if pairs is None else pairs
        return read(self.folder / slug(name), pairs, self.job.batch)

    def _job(self, one: Contestant) -> Job:
        most = [one.most or len(self.job.prompts)]
        if not one.main:
            most.append(self.given.ablation_pairs)
        few = slice(min(most))
        return replace(self.job, prompts=self.job.prompts[few], seeds=self.job.seeds[few])

    def columns(self, names: Sequence[str], count: int) -> dict[str, Tensor]:
        """The first pictures of some contestants, of those that took part."""
        return {name: self._pictures(name, count) for name in names if name in self.runs}

    def _say(self, text: str) -> None:
        self.console.print(f"{self.name}: {text}", style="dim")


def runs_of(given: argparse.Namespace, device: torch.device, judge: Judge) -> list[Run]:
    """One for each number of steps, by one painter."""
    painter = settings.painter_of(given, device)
    return [Run(given, painter, judge, steps) for steps in given.steps]


def paint(runs: Sequence[Run]) -> None:
    """All pictures, costs and times; what one form of the denoiser makes, it makes in one go.

    Contestants follow one another, and their numbers of steps within them: a form is compiled once,
    but for caches, which are settled for a number of steps.
    """
    names = dict.fromkeys(name for run in runs for name in run.runs)
    plain = runs[0].runs[REFERENCE]
    with _form(runs[0], plain) as reference:
        for name in names:
            taking = [run for run in runs if name in run.runs]
            apart = taking[0].runs[name].cache is not None
            for group in [[run] for run in taking] if apart else [taking]:
                _together(group, name, reference)


def _together(runs: Sequence[Run], name: str, reference: Any) -> None:
    """One contestant, by one form."""
    one = runs[0].settled(runs[0].runs[name])
    plain = not one.shortens and one.dtype is None
    with nullcontext(reference) if plain else _form(runs[0], one) as model:
        for run in runs:
            run.make(run.runs[name], model, reference)
    missing = [run for run in runs if not run.counted(run.runs[name])]
    if missing and crew.here().is_main_process:
        with flops.counting(runs[0].painter, one, runs[0].steps) as count:
            for run in missing:
                run.count(run.runs[name], count)


def _form(run: Run, one: Contestant) -> AbstractContextManager[Any]:
    return form(run.painter, one, run.steps, run.job.backend)
