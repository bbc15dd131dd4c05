"""Pass 3: decide what is merged, in which windows, and which regions share a plan.

Why: the proof says what may be merged; the configuration says what should be. Only facts about
regions are read, the graph is not touched.

Before: regions with proofs. After: every region merged, skipped or refused with its reason, and
each merged one in a `Group`.

Precondition: `find` has run.
"""

from __future__ import annotations

from collections.abc import Callable

from toma_fx.config import TomaConfig
from toma_fx.errors import CannotRewrite
from toma_fx.passes.find.region import Forecast, Group, Region
from toma_fx.passes.graph.outside import Outside
from toma_fx.passes.methods import METHODS
from toma_fx.passes.plan.arrange import Arrangement, arrange
from toma_fx.passes.plan.forecast import added
from toma_fx.passes.plan.wanted import early_blocks, unwanted
from toma_fx.windows import Windows

Judge = Callable[[Region, Windows], Forecast]
"""What merging a region in some windows is worth."""
Widen = Callable[[list[Region]], list[Region]]
"""Regions of one plan to what is rewritten: scopes over some of them, and the rest."""


def plan(
    regions: list[Region],
    config: TomaConfig,
    judge: Judge,
    widen: Widen = list,
    outside: Outside = Outside(),  # noqa: B008 - frozen
) -> list[Group]:
    """Assign groups to the regions that stay merged; say of the others why they do not.

    Args:
        regions: from `find`; their status, reason, group and forecast are set.
        config: what the user chose.
        judge: predicts or measures; with `regions="auto"` it decides as well.
        widen: from `scope`; a scope is judged as a whole.
        outside: what is known of the grid beside the graph.
    """
    method = METHODS[config.method]
    early = early_blocks(regions, config.skip_blocks)
    for region in regions:
        if region.status == "merged":
            region.reason, region.scope = "", None
            reason = unwanted(region, config, early)
            if reason:
                region.drop("skipped", reason)
    _share_geometry(regions)
    groups: list[Group] = []
    for members in _runs([region for region in regions if region.status == "merged"], config):
        try:
            where = arrange(members[0], config, method, outside)
        except CannotRewrite as refusal:
            for region in members:
                region.drop("refused", str(refusal))
            continue
        if not _removes_tokens(where.windows):
            for region in members:
                region.drop("skipped", f"ratio {config.ratio:g} removes no token of a window")
            continue
        units = _worthwhile(widen(members), where.windows, config, judge)
        if units:
            groups.append(_group(len(groups), where, units, config))
    _measure_depth([region for group in groups for region in group.regions])
    return groups


def _share_geometry(regions: list[Region]) -> None:
    """What one region tells of a stream's grid holds for all of the stream's."""
    streams: dict[object, list[Region]] = {}
    for region in regions:
        if region.origin is not None:
            streams.setdefault((region.origin.key, region.origin.length), []).append(region)
    for members in streams.values():
        grid = next((region.grid for region in members if region.grid), None)
        pictures = next((region.pictures for region in members if region.pictures), ())
        positions = next((region.positions for region in members if region.positions), None)
        for region in members:
            region.grid, region.pictures, region.positions = grid, pictures, positions


def _removes_tokens(windows: Windows) -> bool:
    return windows.merged < windows.tokens


def _group(index: int, where: Arrangement, units: list[Region], config: TomaConfig) -> Group:
    members = [region for unit in units for region in unit.members]
    group = Group(index, where.windows, config.method, where.slots, where.positions, where.grid)
    group.side, group.follows = METHODS[config.method].cells(config)
    group.regions, group.note = members, where.note
    for region in (*units, *members):
        region.group = group
    for region in members:
        region.reason = "; ".join(filter(None, (where.note, region.note, region.reason)))
    return group


def _worthwhile(
    units: list[Region], windows: Windows, config: TomaConfig, judge: Judge
) -> list[Region]:
    """The units that stay; each of their regions keeps its forecast."""
    kept = []
    for unit in units:
        found = [_judged(region, windows, judge) for region in unit.members]
        forecasts = [forecast for forecast in found if forecast is not None]
        if len(forecasts) < len(found):
            kept += _worthwhile(_left_of(unit), windows, config, judge)
        elif config.regions == "auto" and not (whole := added(forecasts)).gains:
            for region in unit.members:
                region.drop("skipped", f"merging gains nothing: {whole}")
        else:
            kept.append(unit)
    return kept


def _judged(region: Region, windows: Windows, judge: Judge) -> Forecast | None:
    try:
        region.forecast = judge(region, windows)
    except CannotRewrite as refusal:
        region.drop("refused", str(refusal))
        return None
    return region.forecast


def _left_of(unit: Region) -> list[Region]:
    """The other regions of a scope one of which is refused: each on its own."""
    left = [region for region in unit.members if region.status == "merged"]
    for region in left:
        region.scope = None
        region.reason = "scope: a region in it is refused; merged region by region"
    return left


def _measure_depth(regions: list[Region]) -> None:
    blocks = list(dict.fromkeys(region.block_path for region in regions))
    for region in regions:
        region.depth = blocks.index(region.block_path) / len(blocks)
        if region.scope is not None and region is region.scope.members[0]:
            region.scope.depth = region.depth


def _runs(regions: list[Region], config: TomaConfig) -> list[list[Region]]:
    """Neighbours with the same sharing key, in graph order."""
    key = _SHARING[config.share]
    runs: list[list[Region]] = []
    for region in regions:
        if runs and config.share != "region" and key(runs[-1][-1]) == key(region):
            runs[-1].append(region)
        else:
            runs.append([region])
    return runs


def _stream_key(region: Region) -> tuple[object, ...]:
    assert region.origin is not None
    return (region.origin.key, region.tokens, region.channels, region.block_class)


_SHARING: dict[str, Callable[[Region], tuple[object, ...]]] = {
    "run": _stream_key,
    "block": lambda region: (*_stream_key(region), region.block_path),
    "region": lambda region: (region.entry,),
}
