"""Runs the passes: times each, tells of it, counts, and catches the one refusal."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import fx
from torch._dynamo.utils import counters, dynamo_timed

from toma_fx.config import SHARES, TomaConfig
from toma_fx.devices import PROFILES, DeviceProfile, find_profile
from toma_fx.errors import CannotRewrite
from toma_fx.passes.again import Again
from toma_fx.passes.find.region import Forecast, Group, Region
from toma_fx.passes.graph.exchanges import meets_ranks
from toma_fx.passes.graph.outside import Outside
from toma_fx.passes.layouts.analysis import Analysis
from toma_fx.passes.logs import record, tell_passed_on
from toma_fx.passes.methods import METHODS
from toma_fx.passes.methods.pace import USUAL, Computes, Pace
from toma_fx.passes.normalize.batch import (
    Batch,
    find_batch,
    hints,
    specialise,
    symbolic,
    with_sizes,
)
from toma_fx.passes.normalize.exchanges import flatten_exchanges
from toma_fx.passes.normalize.gathers import flatten_gathers
from toma_fx.passes.normalize.marks import LIFTED, lift_marks, refuse_unbacked
from toma_fx.passes.normalize.normalize import normalize
from toma_fx.passes.normalize.wrapped import call_own_linears
from toma_fx.passes.plan.forecast import flops_of, model_forecast, unmerged_forecast
from toma_fx.passes.plan.plan import plan
from toma_fx.passes.plan.scope import Scopes, scope_remarks
from toma_fx.passes.plan.wanted import unmatched_patterns
from toma_fx.passes.rewrite.batched import Batched
from toma_fx.passes.rewrite.guard_inputs import GuardInputs, shows_step
from toma_fx.passes.stages import Rewriting, device_of, find_regions, guard_of, judge_of
from toma_fx.passes.verify import verify
from toma_fx.report import RegionReport, Report

T = TypeVar("T")


@dataclass
class RewriteResult:
    """A rewritten graph and what happened.

    Attributes:
        graph_module: the merged graph, or the graph module that was given where nothing merges.
        report: every region with its fate.
        told_apart: places of the inputs by which the guard knows a slot.
        passed_on: whether it was not looked at further, being no denoiser's.
        batched: how it serves batches of every size; None where it serves the one.
    """

    graph_module: fx.GraphModule
    report: Report = field(default_factory=Report)
    told_apart: tuple[int, ...] = ()
    passed_on: bool = False
    batched: Batched | None = None


def run_passes(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    config: TomaConfig,
    pace: Pace = USUAL,
    outside: Outside | None = None,
    denoisers_only: bool = False,
    any_batch: bool = False,
) -> RewriteResult:
    """normalize → find → plan → hoist → rewrite → verify; `gm` comes back untouched on refusal.

    `logs` says how to see the report and the graphs.

    Args:
        gm: any graph module.
        example_inputs: one per placeholder.
        config: how it is merged.
        pace: what it computes of its regions.
        outside: what it is told of the model that it is part of; None where nobody tells anything.
        denoisers_only: whether a graph without a step, its own or a told one, is passed on.
        any_batch: whether it may serve batches of every size, where that is a symbol. It then has
            symbols in it, and what it keeps is made for each size (`RewriteResult.batched`).
    """
    told = outside or Outside()
    assert pace == USUAL or METHODS[config.method].remembers
    told_apart: tuple[int, ...] = ()
    clock = _Clock()
    report = Report(seconds=clock.seconds)
    regions: list[Region] = []
    normal: fx.GraphModule | None = None
    result = gm
    inputs = symbolic(gm, example_inputs) if any_batch else example_inputs
    batch: Batch | None = None
    batched: Batched | None = None
    try:
        refuse_unbacked(inputs)
        batch = find_batch(inputs) if any_batch and not config.autotune else None
        given = with_sizes(inputs, hints(inputs))
        normal = clock.time("normalize", lambda: normalize(gm, given))
        analysis = clock.time("analyse", lambda: Analysis(normal))
        if denoisers_only and not (told.followed or shows_step(analysis, config)):
            return _passed_on(gm, "it shows no step of a denoiser")
        if config.ratio > 0 or not any_batch:  # else nothing merges, whatever the sizes
            report.notes += _specialised(inputs, batch)
        regions = clock.time("find", lambda: find_regions(analysis, config, told))
        _refuse_measured(regions, config, device_of(normal))
        judge = judge_of(normal, config)
        scopes = Scopes(analysis, regions, config)
        groups = clock.time("plan", lambda: plan(regions, config, judge, scopes.widen, told))
        if groups:
            guard = clock.time("guard", lambda: guard_of(analysis, groups, config, outside))
            report.notes += [guard.note] if guard.note else []
            told_apart = _places(normal, guard, groups, config)
            one = Rewriting(normal, analysis, regions, guard, config, judge, scopes, told)
            result = clock.time("rewrite", lambda: one.run(pace))
        if result is not gm:
            clock.time("verify", lambda: verify(normal, result))
            call_own_linears(result, example_inputs)
            flatten_exchanges(result)
            flatten_gathers(result)
    except CannotRewrite as refusal:
        if denoisers_only and not told.followed and not regions:
            return _passed_on(gm, str(refusal))
        result = gm
        report.notes.append(str(refusal))
        for region in regions:
            if region.status == "merged":
                region.drop("refused", str(refusal))
    profile = find_profile(config.device, device_of(normal) if normal else torch.device("cpu"))
    report.regions = [_reported(region, profile, pace.computes) for region in regions]
    if normal is not None:
        new = None if result is gm else result
        report.forecast = model_forecast(normal.graph, regions, config, profile, new)
    report.remarks = [*scope_remarks(regions), *report.remarks]
    if result is not gm and told.followed and METHODS[config.method].stateful:
        report.remarks.append(_SHARED[METHODS[config.method].remembers, config.share])
    if result is not gm and pace.remark:
        report.remarks.append(pace.remark)
    report.notes += [
        f"pattern {p!r} matches no region" for p in unmatched_patterns(regions, config)
    ]
    if result is not gm and batch is not None:
        again = Again(gm, inputs, batch, regions, config, pace, outside)
        batched = clock.time("batch", lambda: _generalised(again, result, report))
    counters["toma_fx"]["regions_merged"] += len(report.merged)
    counters["toma_fx"]["graphs_rewritten"] += result is not gm
    record(report, normal, result if result is not gm else None)
    return RewriteResult(result, report, told_apart, batched=batched)


def _generalised(again: Again, merged: fx.GraphModule, report: Report) -> Batched | None:
    try:
        return again.generalise(merged)
    except CannotRewrite as refusal:
        report.remarks.append(f"each batch size compiles once: {refusal}")
        _specialised(again.inputs, None)
        return None


def _specialised(inputs: Sequence[Any], batch: Batch | None) -> list[str]:
    """Make all sizes static but that of the batch; what to say of it."""
    but = batch.symbol if batch is not None else None
    lifted = lift_marks(inputs, but)
    specialise(inputs, but)
    return [LIFTED] if lifted else []


def _passed_on(gm: fx.GraphModule, reason: str) -> RewriteResult:
    counters["toma_fx"]["graphs_passed_on"] += 1
    tell_passed_on(reason)
    return RewriteResult(gm, passed_on=True)


def _refuse_measured(regions: list[Region], config: TomaConfig, device: torch.device) -> None:
    """Ranks that measure may decide differently, and would then exchange unequal shares."""
    if config.regions != "auto":
        return
    exchanging = [
        region
        for region in regions
        if region.status == "merged" and any(map(meets_ranks, region.nodes))
    ]
    alike = not config.autotune and find_profile(config.device, device) in PROFILES.values()
    for region in exchanging if not alike else ():
        region.drop(
            "refused",
            "ranks have to merge alike, and what each measures decides: name a profile "
            '(TomaConfig(device="h100")), or regions="all"',
        )


_SHARED = {
    **{(True, share): "each block remembers for itself" for share in SHARES},
    **{(False, share): "each block has a plan of its own" for share in SHARES},
    (False, "run"): "blocks of one list share a plan, made by the first that is called",
}


def _places(
    normal: fx.GraphModule, guard: GuardInputs, groups: list[Group], config: TomaConfig
) -> tuple[int, ...]:
    """Of the inputs that tell conditionings and grids apart."""
    known = {*guard.told_apart(config), *(g.positions.node for g in groups if g.positions)}
    placeholders = normal.graph.find_nodes(op="placeholder")
    return tuple(place for place, node in enumerate(placeholders) if node in known)


def _reported(region: Region, profile: DeviceProfile, computes: Computes) -> RegionReport:
    group = region.group if region.status == "merged" else None
    before = after = flops_of(region, None)
    tokens = region.tokens
    if group is not None and computes is Computes.SHARE:
        tokens, after = group.windows.merged, flops_of(region, group)
    elif group is not None:
        _at_pace(region, computes)
        if computes is Computes.NONE:
            tokens = after = 0
    seconds = region.forecast or unmerged_forecast(region, profile)
    return RegionReport(
        module_path=region.module_path,
        kind=region.kind,
        tokens=region.tokens,
        merged_tokens=tokens,
        channels=region.channels,
        group=group.index if group else None,
        status=region.status,
        reason=region.reason,
        flops_before=before,
        flops_after=after,
        seconds_before=seconds.before,
        seconds_after=seconds.after if group else seconds.before,
    )


def _at_pace(region: Region, computes: Computes) -> None:
    """Forecast all of a region, or nothing, instead of a share."""
    was = region.forecast
    if was is not None:
        after = was.before if computes is Computes.ALL else 0.0
        region.forecast = Forecast(was.before, after, was.source)


class _Clock:
    """Seconds of the stages, for the report; torch's own compile times have them as well."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, name: str, run: Callable[[], T]) -> T:
        start = time.perf_counter()
        try:
            with dynamo_timed(f"toma_fx.{name}"):
                return run()
        finally:
            self.seconds[name] = time.perf_counter() - start
