"""The Pareto plots, and grids of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
from torch import Tensor

mpl.use("agg")
import matplotlib.pyplot as plt

from benchmarks.quality.rows import COSTS, Row, is_steps

_COLORS = plt.get_cmap("tab20").colors[::2] + plt.get_cmap("tab20").colors[1::2]
_LABELLED = ("fewer steps", "method", "refresh", "cache")
_DRAWN = {"time": "measured time of a generation", "FLOPs": "FLOPs of a generation"}


def pareto(rows: Sequence[Row], measure: str, title: str, file: Path) -> None:
    """Distance to the plain picture against time and against FLOPs; lower and further left is
    better. What is at no distance, or costs more than the plain model, is not drawn.
    """
    figure, both = plt.subplots(1, 2, figsize=(15, 7), layout="constrained", sharey=True)
    groups = list(dict.fromkeys(row.group for row in rows if row.merges or is_steps(row)))
    styles = dict(zip(groups, zip(cycle("osD^vPX*"), cycle(_COLORS), strict=False), strict=False))
    for axes, (cost, words) in zip(both, _DRAWN.items(), strict=True):
        known = [row for row in rows if COSTS[cost](row) and measure in row.found]
        for group, style in styles.items():
            members = [row for row in known if row.group == group and row.found[measure].mean > 0]
            _points(axes, members, cost, measure, group, *style)
        axes.set(xlabel=f"{words}, share of the plain model's", xlim=(0, 1.05), yscale="log")
        axes.grid(alpha=0.3, which="both")
    both[0].set_ylabel(f"{measure}, to the plain picture")
    if groups:
        both[1].legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _points(
    axes: Any, rows: list[Row], cost: str, measure: str, group: str, marker: str, color: Any
) -> None:
    rows = sorted(rows, key=lambda row: COSTS[cost](row) or 0)
    found = [row.found[measure] for row in rows]
    places = [COSTS[cost](row) for row in rows], [one.mean for one in found]
    errors = [[one.mean - one.low for one in found], [one.high - one.mean for one in found]]
    line = "-" if group == "fewer steps" else ""
    drawn = {"ms": 4, "lw": 1, "capsize": 2, "color": color, "label": group}
    axes.errorbar(*places, yerr=errors, fmt=marker + line, **drawn)
    for row, *place in zip(rows, *places, strict=True) if group in _LABELLED else ():
        name = row.name.removesuffix(" of the steps")
        near = {"xytext": (4, 3), "textcoords": "offset points", "clip_on": True}
        axes.annotate(name, place, fontsize=7, **near)


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
