"""Plain `torch.compile` beside the merging backend, through the same pipeline."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

import toma_fx
from toma_fx.demo.pipelines import Job
from toma_fx.report import seconds_text
from toma_fx.timing import interleaved

_WARM_UP_STEPS = 2  # the first compiles, the second shows whether anything compiles again


@dataclass(frozen=True)
class Comparison:
    """Measurements of one job.

    Attributes:
        compile_seconds: first call of the plain and of the merged model, compilation included.
        plain: seconds a step of each timed run of the plain model.
        merged: likewise with merged tokens, each run right after the plain one of its place.
        change: `‖merged − plain‖ / ‖plain‖` of the final latents.
        report: what was merged.
        reuse: how often plans were made and reused.
    """

    compile_seconds: tuple[float, float]
    plain: list[float]
    merged: list[float]
    change: float
    report: toma_fx.Report
    reuse: toma_fx.ReuseStats

    @property
    def speedups(self) -> list[float]:
        """Time of a plain step over that of the merged one beside it, turn by turn."""
        return [a / b for a, b in zip(self.plain, self.merged, strict=True)]

    @property
    def speedup(self) -> float:
        """Their median: what disturbs a turn disturbs both sides of it."""
        return statistics.median(self.speedups)

    def why_slower(self) -> str:
        """One line for a speedup below 1, and nothing otherwise."""
        if self.speedup >= 1:
            return ""
        report, forecast = self.report, self.report.forecast
        if not report.merged:
            reasons = sorted({region.reason for region in report.regions if region.reason})
            why = f": {reasons[0]}" if len(reasons) == 1 else ""
            return f"nothing was merged, and both run the same graph{why}"
        if min(self.merged) < min(self.plain):
            fastest = (seconds_text(min(steps)) for steps in (self.merged, self.plain))
            return (
                "other programs kept the machine busy: the fastest merged step took {}, the "
                "fastest plain one {}".format(*fastest)
            )
        tokens = max(region.tokens for region in report.merged)
        if forecast is not None and forecast.speedup < 1.1:
            return (
                f"{tokens} tokens are too few: planning and merging cost what they save "
                f"({forecast.speedup:.2f}x predicted)"
            )
        return (
            "this machine is not as the predictions take it to be: toma-fx doctor --measure "
            "measures it, and what does not gain is then left alone"
        )


def compare(job: Job, options: dict[str, Any], steps: int, rounds: int) -> Comparison:
    """Compile the denoiser both ways, then time whole runs in turns.

    A run starts from noise and ends with the latents, so that planning is in the time of a step.

    Args:
        job: a pipeline.
        options: for the merging backend, as in `torch.compile(options=...)`; its
            `inner_backend` serves the plain model too.
        steps: denoising steps a run.
        rounds: runs of each model; more steady the median, at twice the time of a run each.

    Raises:
        ConfigError: an option is unknown or out of range.
    """
    torch._dynamo.reset()  # so that no code of an earlier job is tried first
    denoiser = job.denoiser
    plain = torch.compile(denoiser, backend=options.get("inner_backend", "inductor"))
    merged = torch.compile(denoiser, backend="toma", options=options)
    results: dict[str, Tensor] = {}

    def contestant(name: str, model: Any) -> Callable[[], None]:
        turn = itertools.count(1)

        def run() -> None:
            results[name] = job.run(model, steps, f"{name}, run {next(turn)} of {rounds}")

        return run

    try:
        first = [
            _seconds(lambda: job.run(plain, _WARM_UP_STEPS, "compile plain ", "pt")),
            _seconds(lambda: job.run(merged, _WARM_UP_STEPS, "compile merged", "pt")),
        ]
        report = toma_fx.last_report()
        runs = {"plain": contestant("plain", plain), "merged": contestant("merged", merged)}
        seconds = interleaved(runs, rounds)
    finally:
        setattr(job.pipeline, job.component, denoiser)
    a_step = {name: [spent / steps for spent in times] for name, times in seconds.items()}
    change = float((results["merged"] - results["plain"]).norm() / results["plain"].norm())
    reuse = toma_fx.reuse_stats(denoiser)
    return Comparison(
        (first[0], first[1]), a_step["plain"], a_step["merged"], change, report, reuse
    )


def show(comparison: Comparison, console: Console) -> None:
    """Print the region table, the times and the change of the result."""
    print(comparison.report, end="")
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("", "first call", "a step", "spread", "speed", "spread", "change of the result"):
        table.add_column(name, justify="left" if not name else "right")
    plain, merged = comparison.plain, comparison.merged
    first, second = comparison.compile_seconds
    table.add_row("torch.compile", *_times(first, plain), "1.00x", "", "")
    speeds = comparison.speedups
    speed = f"{comparison.speedup:.2f}x", f"{min(speeds):.2f} … {max(speeds):.2f}x"
    change = f"{comparison.change:.1%}"
    table.add_row('torch.compile(backend="toma")', *_times(second, merged), *speed, change)
    console.print(table)
    if why := comparison.why_slower():
        console.print(f"below 1x: {why}")
    reuse, turns = comparison.reuse, len(comparison.plain)
    console.print(
        f"medians of {turns} runs each, in turns; plans over {reuse.steps} steps: destinations "
        f"chosen {reuse.selections} times, weights computed {reuse.weighings} times, "
        f"reused {reuse.reuses} times\n"
    )


def _times(first: float, steps: list[float]) -> tuple[str, str, str]:
    spread = f"{1e3 * min(steps):.0f} … {1e3 * max(steps):.0f} ms"
    return f"{first:.1f} s", f"{1e3 * statistics.median(steps):.0f} ms", spread


def _seconds(run: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
