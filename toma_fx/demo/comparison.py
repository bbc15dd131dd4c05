"""Plain `torch.compile` beside the merging backend, through the same pipeline."""

from __future__ import annotations

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

_WARM_UP_STEPS = 2  # the first compiles, the second shows whether anything compiles again


@dataclass(frozen=True)
class Comparison:
    """Measurements of one job.

    Attributes:
        compile_seconds: first call of the plain and of the merged model, compilation included.
        plain: seconds a step of each timed run of the plain model.
        merged: likewise with merged tokens.
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
    def speedup(self) -> float:
        """Median time of a plain step over that of a merged one."""
        return statistics.median(self.plain) / statistics.median(self.merged)


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
    try:
        first = [
            _seconds(lambda: job.run(plain, _WARM_UP_STEPS, "compile plain ", "pt"))[0],
            _seconds(lambda: job.run(merged, _WARM_UP_STEPS, "compile merged", "pt"))[0],
        ]
        report = toma_fx.last_report()
        times: tuple[list[float], list[float]] = ([], [])
        for turn in range(1, rounds + 1):
            count = f"run {turn} of {rounds}"
            spent, reference = _seconds(lambda: job.run(plain, steps, f"plain,  {count}"))  # noqa: B023
            times[0].append(spent / steps)
            spent, result = _seconds(lambda: job.run(merged, steps, f"merged, {count}"))  # noqa: B023
            times[1].append(spent / steps)
    finally:
        setattr(job.pipeline, job.component, denoiser)
    change = float((result - reference).norm() / reference.norm())
    reuse = toma_fx.reuse_stats(denoiser)
    return Comparison((first[0], first[1]), *times, change, report, reuse)


def show(comparison: Comparison, console: Console) -> None:
    """Print the region table, the times and the change of the result."""
    print(comparison.report, end="")
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("", "first call", "a step (median)", "spread", "speed", "change of the result"):
        table.add_column(name, justify="left" if not name else "right")
    plain, merged = comparison.plain, comparison.merged
    first, second = comparison.compile_seconds
    table.add_row("torch.compile", *_times(first, plain), "1.00x", "")
    change, speed = f"{comparison.change:.1%}", f"{comparison.speedup:.2f}x"
    table.add_row('torch.compile(backend="toma")', *_times(second, merged), speed, change)
    console.print(table)
    reuse = comparison.reuse
    console.print(
        f"plans over {reuse.steps} steps: destinations chosen {reuse.selections} times, "
        f"weights computed {reuse.weighings} times, reused {reuse.reuses} times\n"
    )


def _times(first: float, steps: list[float]) -> tuple[str, str, str]:
    spread = f"{1e3 * min(steps):.0f} … {1e3 * max(steps):.0f} ms"
    return f"{first:.1f} s", f"{1e3 * statistics.median(steps):.0f} ms", spread


def _seconds(run: Callable[[], Tensor]) -> tuple[float, Tensor]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result
