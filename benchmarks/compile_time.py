"""Time of the passes and of a whole compile, beside the plain compile.

    python -m benchmarks.compile_time --out benchmarks/results/compile_time.json

Passes: SDXL-base and Flux.1-dev at full size on the meta device. Whole compiles: small models of
both architectures, and a narrow Flux.1 of its full depth, cold caches, each in a process of its
own; the denoiser whole, and its blocks apart.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import toma_fx
from benchmarks.machine import describe
from tests.models import flux, flux_inputs, full_flux, full_sdxl, sdxl, sdxl_inputs


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


APART = "apart "
"""In front of a backend: blocks are compiled apart."""
BACKENDS = ("inductor", "toma", f"{APART}inductor", f"{APART}toma")


@torch.no_grad()
def compile_once(architecture: str, backend: str) -> float:
    """Seconds from `torch.compile` to the first result, this process."""
    if architecture == "sdxl":
        model, inputs = sdxl(), {}
        inputs = sdxl_inputs(model, 64, 64)
    else:
        deep = {"num_layers": 19, "num_single_layers": 38} if architecture == "deep flux" else {}
        model = flux(**deep)
        inputs = flux_inputs(model, 32, 32)
    start = time.perf_counter()
    if backend.startswith(APART):
        toma_fx.follow(model)
        model.compile_repeated_blocks(backend=backend.removeprefix(APART), fullgraph=True)
        model(**inputs)
    else:
        torch.compile(model, backend=backend, fullgraph=True)(**inputs)
    return time.perf_counter() - start


def cold_compile(architecture: str, backend: str) -> float:
    """The same in a fresh process with an empty cache folder."""
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-m", "benchmarks.compile_time", "--one", architecture, backend]
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
        result = subprocess.run(
            command, env=environment, check=True, capture_output=True, text=True
        )
    return float(result.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    names = ("sdxl", "flux", "deep flux")
    parser.add_argument("--models", nargs="+", choices=names, default=names, help="to compile")
    parser.add_argument("--one", nargs=2, metavar=("ARCHITECTURE", "BACKEND"), help="internal")
    given = parser.parse_args()
    if given.one:
        print(compile_once(*given.one))
        return
    passes = pass_times()
    compiles = {
        name: {backend: cold_compile(name, backend) for backend in BACKENDS}
        for name in given.models
    }
    console = Console()
    table = Table("model", "regions", "normalize", "other passes", "total", title="passes, seconds")
    for name, row in passes.items():
        seconds = {key: value for key, value in row.items() if key != "merged"}
        rest = sum(seconds.values()) - seconds["normalize"]
        columns = (seconds["normalize"], rest, sum(seconds.values()))
        table.add_row(name, str(row["merged"]), *(f"{value:.2f}" for value in columns))
    console.print(table)
    columns = ("plain", "toma", "ratio", "plain, apart", "toma, apart", "ratio", "apart / whole")
    table = Table("small model", *columns, title="cold compile, seconds")
    for name, row in compiles.items():
        plain, merged, *blocks = (row[backend] for backend in BACKENDS)
        whole = (f"{plain:.1f}", f"{merged:.1f}", f"{merged / plain:.2f}")
        apart = (f"{blocks[0]:.1f}", f"{blocks[1]:.1f}", f"{blocks[1] / blocks[0]:.2f}")
        table.add_row(name, *whole, *apart, f"{blocks[1] / merged:.2f}")
    console.print(table)
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        result = {**describe(), "passes": passes, "cold_compile": compiles}
        given.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
