"""Plain against shortened, at the same seeds and captions: a table for each number of steps.

    python -m benchmarks.quality --model emoji-sdxl
    python -m benchmarks.quality --model emoji-flux --quick --out build/quick
    python -m benchmarks.quality --model emoji-flux --rows acceptance --steps 28 12
    accelerate launch -m benchmarks.quality --model FOLDER --dino FOLDER --pairs 3000 --steps 50
    python -m benchmarks.quality --engine ray --model FOLDER --pairs 3000 --steps 50

A run that stops goes on where it stopped. `--pairs 150 --ablation-pairs 150 --prompts FILE` with 50
prompts is the paper's protocol of ablations. With `--rounds 0` models may be painted side by side,
one on each core; a second run times them.
"""

from __future__ import annotations

import torch
from accelerate import PartialState
from rich.console import Console

from benchmarks.machine import describe
from benchmarks.quality import notes, plots, ray_engine, report, settings, verdicts
from benchmarks.quality.contestant import REFERENCE
from benchmarks.quality.rows import Row
from benchmarks.quality.run import Run, paint, runs_of

_SHOWN = (
    *("50% of the steps", "25% of the steps", "toma 0.25", "toma 0.5", "tomesd 0.5", "tofu 0.5"),
    *("todo 0.75", "refresh 0.5", "refresh 0.5, rest_every 2", "taylorseer, every 2nd step"),
    *("first block cache, half", "deepcache, every 2nd step"),
)
_ROWS = 12  # of a grid


def main(arguments: list[str] | None = None) -> int:
    given = settings.given(arguments)
    if given.engine == "ray":
        ray_engine.paint(given)  # what is left for this process is to time, and to judge
    device = torch.device(given.device) if given.device else PartialState().device
    judge, missing = settings.judge_of(given, settings.prompts_of(given), device)
    runs = runs_of(given, device, judge)
    paint(runs)
    if PartialState().is_main_process:
        try:
            for run in runs:
                write(run, run.rows(), missing)
        except notes.GateError as error:
            Console().print(str(error))
            return 1
    return 0


def write(run: Run, rows: list[Row], missing: dict[str, str]) -> None:
    """Table, plot and pictures of one number of steps."""
    out, name = run.given.out, run.name
    key = next(iter(run.judge.features), "perceptual")
    said = [*notes.notes_of(run, missing), *notes.gate(rows, key)]
    for judged in (verdicts.verdicts, verdicts.against_steps, verdicts.fronts):
        said += judged(rows, key)
    settings_of = {k: str(v) for k, v in vars(run.given).items() if v not in (None, [])}
    about = {**describe(), "settings": settings_of, "skipped": run.field.skipped}
    report.write(out, name, rows, {**about, "missing": missing}, said, key)
    if any(key in row.found for row in rows):
        plots.pareto(rows, key, f"{name}: {len(run.job.prompts)} pairs", out / f"{name}.png")
    count = min(_ROWS, len(run.job.prompts), run.given.ablation_pairs)
    prompts = run.job.prompts[:count]
    plots.grid(run.columns((REFERENCE, *_SHOWN), count), prompts, out / f"{name}-grid.png")
    for file in sorted(out.iterdir()):
        if file.stem in (name, f"{name}-grid"):
            run.console.print(f"wrote {file}")


if __name__ == "__main__":
    raise SystemExit(main())
