"""Time of the passes and of a whole compile, beside the plain compile.

    python -m benchmarks.compile_time --out benchmarks/results/compile_time.json

Passes: SDXL-base and Flux.1-dev at full size on the meta device. Whole compiles: small models of
both architectures, and a narrow Flux.1 of its full depth, cold caches, each in a process of its
own; the denoiser whole, and its blocks apart; plain, merged, and with tokens that remember. For
each compile the results hold CPU seconds, seconds by phase, and counts (`compile_phases`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import toma_fx
from benchmarks.compile_phases import grouped, measured
from benchmarks.machine import describe
from tests.models import flux, flux_inputs, full_flux, full_sdxl, sdxl, sdxl_inputs

APART = "apart "
"""In front of a way to compile: blocks are compiled apart."""
OPTIONS: dict[str, dict[str, Any] | None] = {
    "inductor": None,
    "toma": {},
    "refresh": {"method": "refresh"},
}
"""Ways to compile: options of the backend, None for the plain one."""
MODELS = {
    "sdxl": "SDXL, small",
    "flux": "Flux, small",
    "deep flux": "Flux of 19 + 38 blocks, narrow",
}
DEEP = {"num_layers": 19, "num_single_layers": 38}


def pass_times() -> dict[str, dict[str, Any]]:
    """Seconds of every pass for the full-size models, and how many regions were merged."""
    found: dict[str, dict[str, Any]] = {}
    for name in ("sdxl", "flux-dev"):
        with torch.device("meta"):
            model = full_sdxl() if name == "sdxl" else full_flux()
            inputs = (
                sdxl_inputs(model, 128, 128)
                if name == "sdxl"
                else flux_inputs(model, 64, 64, text=512)
            )
        report = toma_fx.explain(model, **inputs)
        found[name] = {"merged": len(report.merged), **report.seconds}
    return found


@torch.no_grad()
def compile_once(architecture: str, way: str) -> dict[str, Any]:
    """What it takes from `torch.compile` to the first result, this process."""
    if architecture == "sdxl":
        model = sdxl()
        inputs = sdxl_inputs(model, 64, 64)
    else:
        model = flux(**(DEEP if architecture == "deep flux" else {}))
        inputs = flux_inputs(model, 32, 32)
    options = OPTIONS[way.removeprefix(APART)]
    how: dict[str, Any] = {"backend": "inductor"}
    if options is not None:
        how = {"backend": "toma", "options": options}
    with measured() as found:
        if way.startswith(APART):
            toma_fx.follow(model)
            model.compile_repeated_blocks(fullgraph=True, **how)
            model(**inputs)
        else:
            torch.compile(model, fullgraph=True, **how)(**inputs)
    return found


def cold_compile(architecture: str, way: str) -> dict[str, Any]:
    """The same in a fresh process with an empty cache folder."""
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-m", "benchmarks.compile_time", "--one", architecture, way]
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
        result = subprocess.run(
            command, env=environment, check=True, capture_output=True, text=True
        )
    found: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return found


def doc_rows(cold: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """Cells of the table of `docs/benchmarks.md`: a model, seconds of its plain compile, and for
    each other way that was measured its ratios to that, the same of blocks apart, and apart to
    whole.
    """
    found = []
    for name, seconds in cold.items():
        plain, plain_apart = seconds["inductor"], seconds[f"{APART}inductor"]
        row = [MODELS[name], f"{plain:.0f} s"]
        for way in ("toma", "refresh"):
            if way in seconds:
                whole, apart = seconds[way], seconds[APART + way]
                ratios = (whole / plain, apart / plain_apart, apart / whole)
                row += [f"{ratio:.2f}" for ratio in ratios]
        found.append(row)
    return found


def _pass_table(passes: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table("model", "regions", "normalize", "other passes", "total", title="passes, seconds")
    for name, row in passes.items():
        seconds = {key: value for key, value in row.items() if key != "merged"}
        total = sum(seconds.values())
        columns = (seconds["normalize"], total - seconds["normalize"], total)
        table.add_row(name, str(row["merged"]), *(f"{value:.2f}" for value in columns))
    return table


def _phase_table(name: str, compiles: Mapping[str, Mapping[str, Any]]) -> Table:
    """A column for each way to compile: seconds and CPU seconds, phases, counts."""
    table = Table("", *compiles, title=f"{MODELS[name]}: cold compile, seconds")
    found = [{**row, **grouped(row["phases"])} for row in compiles.values()]
    plain = [compiles[way.startswith(APART) * APART + "inductor"] for way in compiles]
    for clock in ("seconds", "cpu"):
        cells = (
            f"{a[clock]:.1f} ({a[clock] / b[clock]:.2f})" for a, b in zip(found, plain, strict=True)
        )
        table.add_row(clock, *cells)
    for phase in grouped(found[0]["phases"]):
        table.add_row(phase, *(f"{row[phase]:.1f}" for row in found))
    for count in found[0]["counts"]:
        table.add_row(f"number of {count}", *(str(row["counts"][count]) for row in found))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=[*MODELS], help="to compile")
    ways = [way for way in OPTIONS if OPTIONS[way] is not None]
    parser.add_argument("--ways", nargs="+", choices=ways, default=ways, help="beside the plain")
    parser.add_argument("--one", nargs=2, metavar=("ARCHITECTURE", "WAY"), help="internal")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(compile_once(*given.one)))
        return
    passes = pass_times()
    whole = ("inductor", *given.ways)
    ways = (*whole, *(APART + way for way in whole))
    compiles = {name: {way: cold_compile(name, way) for way in ways} for name in given.models}
    console = Console()
    console.print(_pass_table(passes))
    for name, row in compiles.items():
        console.print(_phase_table(name, row))
    cold = {name: {way: row[way]["seconds"] for way in ways} for name, row in compiles.items()}
    print("For docs/benchmarks.md:")
    for cells in doc_rows(cold):
        print(f"| {' | '.join(cells)} |")
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        result = {**describe(), "passes": passes, "cold_compile": cold, "measured": compiles}
        given.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
