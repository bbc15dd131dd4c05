"""The Pareto plot, and grids of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import matplotlib as mpl
from torch import Tensor

mpl.use("agg")
import matplotlib.pyplot as plt

from benchmarks.quality.report import Row

_COLORS = plt.get_cmap("tab20").colors[::2] + plt.get_cmap("tab20").colors[1::2]
_UNNAMED = ("identical rerun",)  # it lies on the plain model's
_LABELLED = ("anchor", "fewer steps", "method")


def pareto(rows: Sequence[Row], measure: str, title: str, file: Path) -> None:
    """Distance to the plain picture against measured speedup; lower and further right is better."""
    figure, axes = plt.subplots(figsize=(9, 6), layout="constrained")
    axes.margins(x=0.1)  # room for the names of the fastest
    timed = [row for row in rows if row.speedup and measure in row.found]
    groups = dict.fromkeys(row.group for row in timed)
    for group, marker, color in zip(groups, cycle("osD^vP"), cycle(_COLORS), strict=False):
        members = [row for row in timed if row.group == group]
        members.sort(key=lambda row: row.speedup or 0)
        places = [row.speedup for row in members], [row.found[measure].mean for row in members]
        errors = [
            [row.found[measure].mean - row.found[measure].low for row in members],
            [row.found[measure].high - row.found[measure].mean for row in members],
        ]
        line = "-" if group == "fewer steps" else ""
        drawn = {"ms": 4, "lw": 1, "capsize": 2, "color": color, "label": group}
        axes.errorbar(*places, yerr=errors, fmt=marker + line, **drawn)
        for row in members if group in _LABELLED else ():
            place = (row.speedup, row.found[measure].mean)
            if row.name not in _UNNAMED:
                name = row.name.removesuffix(" of the steps")
                axes.annotate(name, place, fontsize=7, xytext=(4, 3), textcoords="offset points")
    fastest = max((row.speedup or 0 for row in timed if row.merges), default=0)
    if fastest:
        axes.set_xlim(right=1.1 * fastest)  # fewer steps go on without end
    axes.set(xlabel="measured speedup of a generation", ylabel=f"{measure}, to the plain picture")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def grid(columns: dict[str, Tensor], prompts: Sequence[str], file: Path) -> None:
    """Pictures `[N, 3, h, w]` of a contestant in each column, a prompt in each row."""
    count = len(prompts)
    figure, axes = plt.subplots(
        count,
        len(columns),
        figsize=(1.3 * len(columns) + 1, 1.3 * count),
        layout="constrained",
        squeeze=False,
    )
    for column, (name, pictures) in enumerate(columns.items()):
        for row in range(count):
            cell = axes[row][column]
            cell.imshow(pictures[row].permute(1, 2, 0).numpy(), interpolation="nearest")
            cell.set(xticks=[], yticks=[])
            if row == 0:
                cell.set_title(name, fontsize=7, wrap=True)
            if column == 0:
                cell.set_ylabel(_wrapped(prompts[row]), fontsize=6)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _wrapped(prompt: str, width: int = 16) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(prompt, width)[:3])
