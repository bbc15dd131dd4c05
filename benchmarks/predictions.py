"""Predicted speedup beside the measured one, for configurations from worth it to not at all.

    python -m benchmarks.predictions --out benchmarks/results/predictions_cpu

Writes JSON and a Markdown table. The machine is measured first. Each configuration runs in a
process of its own: `regions="auto"` as users get it, beside plain `torch.compile`, interleaved.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import toma_fx
from benchmarks.machine import describe
from toma_fx.cli.bench import contestants
from toma_fx.cli.inputs import inputs_for
from toma_fx.cli.presets import build, find_preset
from toma_fx.config import TomaConfig
from toma_fx.devices import measure_device
from toma_fx.timing import interleaved

# Model, side in pixels, ratio. At 64 pixels merging everything would lose.
CASES = (
    ("sdxl-small", 64, 0.25),
    ("sdxl-small", 128, 0.5),
    ("sdxl-small", 256, 0.5),
    ("sdxl-small", 512, 0.25),
    ("sdxl-small", 512, 0.5),
    ("sdxl-small", 512, 0.75),
    ("sdxl-small", 768, 0.5),
    ("flux-small", 256, 0.5),
    ("flux-small", 512, 0.5),
    ("flux-small", 768, 0.5),
)


@torch.no_grad()
def measure(name: str, side: int, ratio: float, rounds: int) -> dict[str, Any]:
    """One configuration, in this process."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build(find_preset(name), device, torch.float32)
    inputs = inputs_for(model, side, side)
    calls = contestants(model, inputs, TomaConfig(ratio=ratio, min_tokens=16), None)
    for call in calls.values():
        call()
    report = toma_fx.last_report()
    interleaved(calls, 1, device)
    seconds = interleaved(calls, rounds, device)
    plain, ours = (statistics.median(seconds[name]) for name in ("torch.compile", "toma"))
    assert report.forecast is not None
    return {
        "model": name,
        "side": side,
        "ratio": ratio,
        "merged": f"{len(report.merged)}/{len(report.regions)}",
        "seconds": plain,
        "predicted_seconds": report.forecast.seconds_before,
        "predicted": report.forecast.speedup,
        "measured": plain / ours,
        "all": seconds,
    }


def rounds_for(side: int) -> int:
    """More of the short ones: a median of few short steps is noise."""
    return 31 if side <= 256 else 9


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| model | pixels | ratio | regions merged | plain step | predicted | measured | error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        error = row["predicted"] / row["measured"] - 1
        lines.append(
            f"| {row['model']} | {row['side']}² | {row['ratio']:g} | {row['merged']} | "
            f"{row['seconds'] * 1e3:.0f} ms | {row['predicted']:.2f}× | {row['measured']:.2f}× | "
            f"{error:+.0%} |"
        )
    errors = [abs(row["predicted"] / row["measured"] - 1) for row in rows]
    worst = min(row["measured"] for row in rows)
    lines += ["", f"Mean absolute error {statistics.mean(errors):.1%}; slowest {worst:.2f}×."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="path without suffix")
    parser.add_argument("--one", nargs=3, metavar=("MODEL", "SIDE", "RATIO"), help="internal")
    given = parser.parse_args()
    if given.one:
        name, side, ratio = given.one[0], int(given.one[1]), float(given.one[2])
        print(json.dumps(measure(name, side, ratio, rounds_for(side))))
        return
    profile = measure_device(again=True)
    rows = []
    for case in track(CASES, "configurations", console=Console(stderr=True)):
        command = [sys.executable, "-m", "benchmarks.predictions", "--one", *map(str, case)]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(result.stdout.strip().splitlines()[-1]))
    table = Table("model", "pixels", "ratio", "merged", "predicted", "measured", "error")
    for row in rows:
        error = row["predicted"] / row["measured"] - 1
        speeds = (f"{row['predicted']:.2f}×", f"{row['measured']:.2f}×", f"{error:+.0%}")
        table.add_row(row["model"], str(row["side"]), f"{row['ratio']:g}", row["merged"], *speeds)
    Console().print(table)
    print(markdown(rows).splitlines()[-1])
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        result_file = {**describe(), "profile": profile.source, "rows": rows}
        given.out.with_suffix(".json").write_text(json.dumps(result_file, indent=2) + "\n")
        given.out.with_suffix(".md").write_text(markdown(rows))


if __name__ == "__main__":
    main()
