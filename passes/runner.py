"""Runs the passes: times each, dumps graphs on request, counts, and catches the one refusal."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from torch import fx
from torch._dynamo.utils import counters

from toma_fx.config import TomaConfig
from toma_fx.errors import CannotRewrite
from toma_fx.passes.analysis import Analysis
from toma_fx.passes.clock import GuardInputs, find_guard_inputs
from toma_fx.passes.find import find
from toma_fx.passes.flops import flops_after, flops_before
from toma_fx.passes.hoist import hoist
from toma_fx.passes.normalize import normalize
from toma_fx.passes.plan import plan, unmatched_patterns
from toma_fx.passes.region import Region
from toma_fx.passes.rewrite import RegionRefused, rewrite
from toma_fx.passes.verify import verify
from toma_fx.report import RegionReport, Report

T = TypeVar("T")


@dataclass
class RewriteResult:
    """A rewritten graph and what happened.

    Attributes:
        graph_module: the merged graph, or the graph module that was given where nothing merges.
        report: every region with its fate.
    """

    graph_module: fx.GraphModule
    report: Report = field(default_factory=Report)


def run_passes(
    gm: fx.GraphModule, example_inputs: Sequence[Any], config: TomaConfig
) -> RewriteResult:
    """normalize → find → plan → hoist → rewrite → verify; `gm` comes back untouched on refusal.

    `TOMA_FX_DUMP=<folder>` writes the graphs before and after as text.
    """
    clock = _Clock()
    report = Report(seconds=clock.seconds)
    regions: list[Region] = []
    result = gm
    try:
        normal = clock.time("normalize", lambda: normalize(gm, example_inputs))
        analysis = clock.time("analyse", lambda: Analysis(normal))
        regions = clock.time("find", lambda: find(analysis, config.grid))
        groups = clock.time("plan", lambda: plan(regions, config))
        if groups:
            guard = clock.time("guard", lambda: find_guard_inputs(analysis, groups, config))
            report.notes += [guard.note] if guard.note else []
            result = clock.time(
                "rewrite", lambda: _rewrite(normal, analysis, regions, guard, config)
            )
        if result is not gm:
            clock.time("verify", lambda: verify(normal, result))
            _dump(normal, result)
    except CannotRewrite as refusal:
        result = gm
        report.notes.append(str(refusal))
        for region in regions:
            if region.status == "merged":
                region.drop("refused", str(refusal))
    report.regions = [_reported(region) for region in regions]
    report.notes += [
        f"pattern {p!r} matches no region" for p in unmatched_patterns(regions, config)
    ]
    counters["toma_fx"]["regions_merged"] += len(report.merged)
    counters["toma_fx"]["graphs_rewritten"] += result is not gm
    return RewriteResult(result, report)


def _rewrite(
    normal: fx.GraphModule,
    analysis: Analysis,
    regions: list[Region],
    guard: GuardInputs,
    config: TomaConfig,
) -> fx.GraphModule:
    """Hoist and rewrite; a region whose replay fails is dropped and the others planned again."""
    while groups := plan(regions, config):
        try:
            with _no_tracebacks():
                return rewrite(normal, groups, hoist(analysis, groups), guard, config)
        except RegionRefused as refusal:
            refusal.region.drop("refused", str(refusal))
    raise CannotRewrite("no region could be rewritten")


@contextmanager
def _no_tracebacks() -> Iterator[None]:
    """A replay that fails is a refusal; fake tensors would log it as an error all the same."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _reported(region: Region) -> RegionReport:
    group = region.group if region.status == "merged" else None
    before = flops_before(region)
    return RegionReport(
        module_path=region.module_path,
        kind=region.kind,
        tokens=region.tokens,
        merged_tokens=group.windows.merged if group else region.tokens,
        channels=region.channels,
        group=group.index if group else None,
        status=region.status,
        reason=region.reason,
        flops_before=before,
        flops_after=flops_after(region) if group else before,
    )


def _dump(before: fx.GraphModule, after: fx.GraphModule) -> None:
    folder = os.environ.get("TOMA_FX_DUMP")
    if not folder:
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    number = len(list(Path(folder).glob("*_before.txt")))
    for name, gm in (("before", before), ("after", after)):
        text = gm.print_readable(print_output=False)
        (Path(folder) / f"{number:03}_{name}.txt").write_text(text)


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, name: str, run: Callable[[], T]) -> T:
        start = time.perf_counter()
        try:
            return run()
        finally:
            self.seconds[name] = time.perf_counter() - start
