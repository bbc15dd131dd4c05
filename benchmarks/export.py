"""Packages beside the jitted model: size, time to export and to load, time of a step.

    python -m benchmarks.export --out benchmarks/results/export_cpu.json

Models of SDXL's and Flux's layout in sizes that a CPU runs, random weights; `--on cuda` in half
precision. Both contestants see
the same falling timesteps, pictures of ten steps, in turns; on shared cores only the ratio of one
run means something. A package is loaded in a process of its own, its imports not counted.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import toma_fx
from benchmarks.machine import describe
from toma_fx import TomaConfig
from toma_fx.cli.inputs import inputs_for
from toma_fx.cli.presets import build, find_preset
from toma_fx.report import seconds_text
from toma_fx.timing import interleaved

STEPS = 10
_LOAD = """
import sys, time, toma_fx
start = time.perf_counter()
toma_fx.load(sys.argv[1])
print(time.perf_counter() - start)
"""


@torch.no_grad()
def measure(
    name: str, side: int, pictures: int, config: TomaConfig, device: torch.device
) -> dict[str, Any]:
    """One model: export, load, and steps of both contestants."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    model = build(find_preset(name), device, dtype)
    inputs = inputs_for(model, side, side)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.pt2"
        start = time.perf_counter()
        toma_fx.export(model, (), inputs, path=path, config=config)
        exporting = time.perf_counter() - start
        size, loading = path.stat().st_size, loading_seconds(path)
        package = toma_fx.load(path)
    jitted = compiled(model, inputs, config)
    runs, results = contestants({"jitted": jitted, "package": package}, inputs)
    seconds = interleaved(runs, pictures * STEPS, device)
    ratios = [a / b for a, b in zip(seconds["jitted"], seconds["package"], strict=True)]
    stats = package.stats()
    return {
        "model": name,
        "side": side,
        "merged": toma_fx.last_report().summary(),
        "weights_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "package_bytes": size,
        "export_seconds": exporting,
        "load_seconds": loading,
        "step_seconds": {run: statistics.median(found) for run, found in seconds.items()},
        "speedup_over_jitted": statistics.median(ratios),
        "largest_relative_error": max(map(relative, results["package"], results["jitted"])),
        "reuse": {"steps": stats.steps, "selections": stats.selections, "reuses": stats.reuses},
        "all": seconds,
    }


def loading_seconds(path: Path) -> float:
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, str(path)], check=True, capture_output=True, text=True
    )
    return float(done.stdout.strip().splitlines()[-1])


def compiled(model: nn.Module, inputs: dict[str, Any], config: TomaConfig) -> Callable[..., Any]:
    """The model through `torch.compile`, warm."""
    fields = {name: getattr(config, name) for name in TomaConfig.field_names()}
    run = torch.compile(model, backend="toma", fullgraph=True, options=fields)
    run(**inputs)
    toma_fx.reset(model)
    return run


def contestants(
    calls: dict[str, Callable[..., Any]], inputs: dict[str, Any]
) -> tuple[dict[str, Callable[[], Any]], dict[str, list[Tensor]]]:
    """A step of each, on timesteps that fall within a picture; and where the results are kept."""
    results: dict[str, list[Tensor]] = {name: [] for name in calls}
    timestep = inputs["timestep"]

    def stepping(name: str) -> Callable[[], Any]:
        left = itertools.cycle(1 - step / STEPS for step in range(STEPS))
        call = calls[name]

        def step() -> None:
            results[name].append(call(**{**inputs, "timestep": timestep * next(left)})[0])

        return step

    return {name: stepping(name) for name in calls}, results


def relative(result: Tensor, expected: Tensor) -> float:
    return float((result - expected).norm() / expected.norm())


def show(rows: list[dict[str, Any]]) -> None:
    names = ("model", "package", "export", "load", "step, jitted", "step, package")
    table = Table(*names, "ratio", "error", title="packages beside the jitted model")
    for row in rows:
        steps = row["step_seconds"]
        table.add_row(
            f"{row['model']} {row['side']}²",
            f"{row['package_bytes'] / 2**20:.0f} MiB",
            *(seconds_text(row[f"{what}_seconds"]) for what in ("export", "load")),
            *(seconds_text(steps[run]) for run in ("jitted", "package")),
            f"{row['speedup_over_jitted']:.2f}×",
            f"{row['largest_relative_error']:.0e}",
        )
    Console(width=130).print(table)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["sdxl-small", "flux-small"])
    parser.add_argument("--side", type=int, default=512, help="of the picture in pixels")
    parser.add_argument("--on", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--pictures", type=int, default=3, help="of ten timed steps each")
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--out", type=Path)
    return parser


def main() -> None:
    given = arguments().parse_args()
    config = TomaConfig(ratio=given.ratio, regions="all")
    rows = []
    for name in given.models:
        rows.append(measure(name, given.side, given.pictures, config, torch.device(given.on)))
        if given.out:  # after each: an interruption loses only what was running
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text(json.dumps({**describe(), "rows": rows}, indent=2) + "\n")
    show(rows)


if __name__ == "__main__":
    main()
