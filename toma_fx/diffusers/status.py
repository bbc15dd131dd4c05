"""What token merging does for a pipeline at present, graph by graph."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table

from toma_fx.diffusers.denoiser import CompiledCall
from toma_fx.diffusers.graphs import (
    DENSE,
    NOT_RUN,
    PLAIN,
    RESTING,
    Graph,
    Tally,
    Variant,
    size_text,
)
from toma_fx.diffusers.recipe import Recipe
from toma_fx.report import Report


@dataclass(frozen=True)
class GraphStatus:
    """Sizes of one graph that fare alike.

    Attributes:
        denoiser: the pipeline's name for it, `unet` or `transformer`; `model` for a model alone.
        graph: `merged`, `merged in pairs` (both halves of guidance share one selection),
            `resting` (regions are predicted), `dense` (all is computed, and remembered) or `plain`.
        state: what runs: `merged`, `resting`, `dense`, `plain`, or `not compiled yet`.
        reason: why the plain model runs; empty where it does not.
        sizes: of the latents, `[B, C, H, W]` or `[B, N, C]`.
        steps: of the latest picture that ran here; of calls so far, where pictures cannot be told
            apart (a model alone).
    """

    denoiser: str
    graph: str
    state: str
    reason: str
    sizes: tuple[tuple[int, ...], ...]
    steps: int


@dataclass(frozen=True)
class Status:
    """What token merging does for a pipeline; `str` of it is a table.

    Attributes:
        applied: whether it is applied to the pipeline asked. Another may share the denoiser: then
            this is False, and the graphs are those of the other.
        graphs: of all its denoisers; empty where nothing is compiled in place.
    """

    applied: bool
    graphs: tuple[GraphStatus, ...] = ()

    @property
    def merged(self) -> bool:
        """Whether any step of the latest picture ran merged."""
        return any(graph.state == "merged" and graph.steps for graph in self.graphs)

    def __str__(self) -> str:
        title = "token merging is " + ("applied" if self.applied else "not applied")
        if not self.graphs:
            return f"{title}\n"
        if not self.applied:
            title += " to this pipeline, but to another that shares its denoiser"
        table = Table(box=box.SIMPLE_HEAD, title=title)
        for name in ("denoiser", "graph", "sizes of latents", "runs", "steps", "plain because"):
            numeric = name == "steps"
            table.add_column(name, justify="right" if numeric else "left", overflow="fold")
        for row in self.graphs:
            sizes = ", ".join(size_text(size) for size in row.sizes)
            table.add_row(row.denoiser, row.graph, sizes, row.state, str(row.steps), row.reason)
        text = io.StringIO()
        Console(file=text, width=140, markup=False).print(table)
        return text.getvalue()


def status_of(name: str, compiled: CompiledCall) -> list[GraphStatus]:
    """One row for each graph, or several where its sizes do not fare alike."""
    rows: list[GraphStatus] = []
    for recipe, graph in compiled.graphs:
        alike: dict[tuple[str, str], list[Tally]] = {}
        for variant in graph.variants:
            alike.setdefault(_fate(variant, graph, recipe), []).append(variant.tally)
        if graph.limit is not None:
            alike.setdefault(("plain", graph.limit.reason), []).append(graph.refused)
        for (state, reason), tallies in alike.items():
            sizes = tuple(size for tally in tallies for size in tally.sizes)
            if sizes:
                steps = sum(tally.steps for tally in tallies)
                rows.append(GraphStatus(name, graph.kind, state, reason, sizes, steps))
    return rows or [GraphStatus(name, "merged", "not compiled yet", "", (), 0)]


def _fate(variant: Variant, graph: Graph, recipe: Recipe) -> tuple[str, str]:
    if graph.kind == PLAIN:
        start, end = recipe.merge_steps
        return "plain", f"outside merge_steps=({start:g}, {end:g})"
    if variant.bypassed:
        return "plain", variant.limit.reason if variant.limit else NOT_RUN
    if not variant.reports:
        return "not compiled yet", ""
    if any(report.merged for report in variant.reports):
        return graph.kind if graph.kind in (RESTING, DENSE) else "merged", ""
    return "plain", _why_nothing(variant.reports[-1])


def _why_nothing(report: Report) -> str:
    """The most frequent reason of a report that merges nothing."""
    reasons = Counter(region.reason for region in report.regions if region.reason)
    if not reasons:
        return "; ".join(report.notes) or report.summary()
    (reason, count), *others = reasons.most_common()
    more = f", and {len(others)} other reasons" if others else ""
    return f"{count} of {len(report.regions)} regions: {reason}{more}"
