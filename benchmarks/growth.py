"""How planning grows with the number of tokens.

    python -m benchmarks.growth --out benchmarks/results/growth_cpu

Writes JSON and a plot. One item, 640 channels, windows of 64 tokens, 32 picks: the work is linear
in the tokens, because windows are of one size.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.machine import describe
from toma_fx import operations

TOKENS = (1024, 2048, 4096, 8192, 16384)


def planning_seconds(tokens: int, rounds: int) -> float:
    """Median of one selection with weights."""
    n, d = 64, 32
    windows = tokens // n
    hidden = torch.randn(1, tokens, 640)
    plan = (torch.zeros(1, windows, d, dtype=torch.int64), torch.zeros(windows, d, n))
    phase = torch.tensor(operations.SELECT, dtype=torch.int32)
    found = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        torch.ops.toma_fx.plan_(
            hidden, None, phase, *plan, torch.zeros(windows, n, d), 1e-3, "transpose", False
        )
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])


def plot(seconds: dict[int, float], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.plot(list(seconds), [value * 1e3 for value in seconds.values()], "o-", label="measured")
    unit = seconds[TOKENS[-1]] / TOKENS[-1] * 1e3
    axes.plot(list(seconds), [tokens * unit for tokens in seconds], "--", label="linear")
    axes.set(xlabel="tokens", ylabel="ms per selection", title="planning, windows of 64 tokens")
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, help="path without suffix")
    given = parser.parse_args()
    seconds = {tokens: planning_seconds(tokens, given.rounds) for tokens in track(TOKENS)}
    table = Table("tokens", "ms", "µs per token", title="one selection")
    for tokens, value in seconds.items():
        table.add_row(str(tokens), f"{value * 1e3:.2f}", f"{value / tokens * 1e6:.2f}")
    Console().print(table)
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        result = {**describe(), "seconds": seconds}
        given.out.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
        plot(seconds, given.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
