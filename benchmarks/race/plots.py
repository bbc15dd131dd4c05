"""Plots of a race: speedup against ratio, against tokens, and growth with planning cost."""

from __future__ import annotations

import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks.race.contestants import CHAMPION, CONTESTANTS, REFERENCE
from benchmarks.race.grid import HALF
from benchmarks.race.models import TITLES
from benchmarks.race.store import Store
from benchmarks.race.table import Record, done

Line = list[tuple[float, float]]


def draw(store: Store, stem: Path) -> None:
    """All plots for which there are enough points, as `STEM_ratio.png` and so on."""
    records = done(list(store.cases.values()))
    for name, plot in (("ratio", _ratios), ("tokens", _tokens), ("growth", _growth)):
        figure = plot(records)
        if figure is not None:
            figure.savefig(stem.with_name(f"{stem.name}_{name}.png"), dpi=120)
            plt.close(figure)


def _ratios(records: list[Record]) -> plt.Figure | None:
    """Speedup against ratio, a panel for each model and size with two ratios or more."""
    panels: dict[tuple[str, int, int], dict[str, Line]] = {}
    for record in records:
        if record["ratio"] is not None:
            key = (record["model"], record["height"], record["width"])
            lines = panels.setdefault(key, {})
            lines.setdefault(record["contestant"], []).append((record["ratio"], record["speedup"]))
            if record["contestant"] == CHAMPION and record["ceiling"]:
                ceiling = (record["ratio"], record["ceiling"])
                lines.setdefault("FLOP ceiling", []).append(ceiling)
    panels = {key: lines for key, lines in panels.items() if _longest(lines) > 1}
    if not panels:
        return None
    figure, axes = _panels(len(panels))
    for (key, lines), place in zip(panels.items(), axes, strict=True):
        model, height, width = key
        _speedups(place, lines)
        place.set(title=wrapped(f"{TITLES[model]}, {width}×{height}"))
        place.set_xlabel("ratio of tokens removed")
    return figure


def _tokens(records: list[Record]) -> plt.Figure | None:
    """Speedup against the number of tokens at ratio one half, a panel for each model."""
    panels: dict[str, dict[str, Line]] = {}
    for record in records:
        if record["ratio"] in (None, HALF) and record["contestant"] != REFERENCE:
            lines = panels.setdefault(record["model"], {})
            point = (record["tokens"], record["speedup"])
            lines.setdefault(record["contestant"], []).append(point)
    panels = {model: lines for model, lines in panels.items() if _longest(lines) > 1}
    if not panels:
        return None
    figure, axes = _panels(len(panels))
    for (model, lines), place in zip(panels.items(), axes, strict=True):
        _speedups(place, lines)
        place.set_xscale("log", base=2)
        place.set(title=wrapped(f"{TITLES[model]}, ratio {HALF:g}"), xlabel="tokens")
    return figure


def _growth(records: list[Record]) -> plt.Figure | None:
    """Speedup and cost of planning against the number of tokens, a line for each model."""
    mine = [r for r in records if r["contestant"] == CHAMPION and r["ratio"] == HALF]
    speedups: dict[str, Line] = {}
    costs: dict[str, Line] = {}
    for record in mine:
        if {"select", "reuse"} <= set(record["phases"]):
            name = TITLES[record["model"]]
            speedups.setdefault(name, []).append((record["tokens"], record["speedup"]))
            costs.setdefault(name, []).append((record["tokens"], 100 * planning_share(record)))
    if _longest(speedups) < 2:
        return None
    figure, (left, right) = _panels(2)
    _speedups(left, speedups)
    _lines(right, costs)
    for place in (left, right):
        place.set_xscale("log", base=2)
        place.set_xlabel("tokens")
    left.set(title=f"speedup at ratio {HALF:g}")
    right.set(title="planning", ylabel="% of a step on average")
    return figure


def planning_share(record: Record) -> float:
    """Part of the average step that planning takes: what it costs above a step that reuses."""
    return max(0.0, 1 - record["phases"]["reuse"] / record["seconds"])


def _panels(count: int) -> tuple[plt.Figure, list[Axes]]:
    columns = min(count, 3)
    rows = -(-count // columns)
    size = (5.5 * columns, 4.5 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    places = list(axes.flat)
    for place in places[count:]:
        place.set_visible(False)
    return figure, places[:count]


def wrapped(title: str) -> str:
    """A title that stays within its panel."""
    return textwrap.fill(title, 44)


def _speedups(axes: Axes, lines: dict[str, Line]) -> None:
    """Lines of two points or more: the table has the others."""
    _lines(axes, {name: line for name, line in lines.items() if len(line) > 1})
    axes.axhline(1.0, color="gray", linewidth=0.8)
    axes.set_ylabel("speedup over torch.compile")


def _lines(axes: Axes, lines: dict[str, Line]) -> None:
    order = [*CONTESTANTS, *lines]
    for name in sorted(lines, key=order.index):
        points = sorted(lines[name])
        style = "--" if name == "FLOP ceiling" else "o-"
        width = 2.5 if name == CHAMPION else 1.2
        axes.plot(*zip(*points, strict=True), style, label=name, linewidth=width, markersize=4)
    axes.legend(fontsize=7)


def _longest(lines: dict[str, Line]) -> int:
    return max((len(line) for line in lines.values()), default=0)
