"""Seconds of regions, of planning and of a whole graph, on a device profile."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, fx

from toma_fx.config import TomaConfig
from toma_fx.devices.profile import DeviceProfile
from toma_fx.passes.find.region import Forecast, Group, Region
from toma_fx.passes.graph.work import Work, kernels
from toma_fx.passes.layouts.layout import Step, TokenLayout
from toma_fx.passes.methods import METHODS
from toma_fx.report import ModelForecast
from toma_fx.windows import Windows


@dataclass(frozen=True)
class Predictor:
    """Both sides of merging a region in some windows, on a device."""

    profile: DeviceProfile
    method: str = "toma"

    def __call__(self, region: Region, windows: Windows) -> Forecast:
        before = total(kernels(region.nodes), self.profile)
        after = total(kernels(region.nodes, _shares(region, windows)), self.profile)
        merging = METHODS[self.method].merging(region, windows)
        return Forecast(before, after + total(merging, self.profile))


def added(forecasts: Sequence[Forecast]) -> Forecast:
    """Of regions that are decided together."""
    if len(forecasts) == 1:
        return forecasts[0]
    before, after = (sum(getattr(f, side) for f in forecasts) for side in ("before", "after"))
    return Forecast(before, after, forecasts[0].source)


def unmerged_forecast(region: Region, profile: DeviceProfile) -> Forecast:
    """Of a region that stays as it is."""
    seconds = total(kernels(region.nodes), profile)
    return Forecast(seconds, seconds)


def model_forecast(
    graph: fx.Graph,
    regions: Iterable[Region],
    config: TomaConfig,
    profile: DeviceProfile,
    merged_graph: fx.GraphModule | None = None,
) -> ModelForecast:
    """The whole graph, from what its merged regions save.

    Args:
        graph: the plain one.
        regions: all of it, with their forecasts.
        config: the method and its schedule.
        profile: of the device.
        merged_graph: what became of it, whose buffers are kept between calls; None where nothing.
    """
    kept = [] if merged_graph is None else list(merged_graph.named_buffers())
    merged = [region for region in regions if region.status == "merged"]
    groups = {id(region.group): region.group for region in merged if region.group is not None}
    forecasts = [region.forecast for region in merged if region.forecast is not None]
    saved = sum(forecast.before - forecast.after for forecast in forecasts)
    before = total(kernels(graph.nodes), profile)
    planning = sum(
        METHODS[group.method].planning(group, config, profile) for group in groups.values()
    )
    return ModelForecast(
        device=profile.name,
        source=profile.source,
        seconds_before=before,
        seconds_after=max(before - saved, 0.0) + planning,
        planning_seconds=planning,
        plan_bytes=_bytes(kept, "toma_plan_"),
        memory_bytes=_bytes(kept, "toma_memory_"),
    )


def flops_of(region: Region, group: Group | None) -> int:
    """FLOPs of the products of a region; with a group on merged tokens, merge and unmerge too."""
    if group is None:
        return round(sum(work.flops for work in kernels(region.nodes)))
    merged = kernels(region.nodes, _shares(region, group.windows))
    merging = METHODS[group.method].merging(region, group.windows)
    return round(sum(work.flops for work in (*merged, *merging)))


def _bytes(buffers: Iterable[tuple[str, Tensor]], prefix: str) -> int:
    return sum(b.numel() * b.element_size() for name, b in buffers if name.startswith(prefix))


def total(works: Iterable[Work], profile: DeviceProfile) -> float:
    return sum(work.seconds(profile) for work in works)


class _shares:  # noqa: N801 - a function with memory
    """How much of each tensor of a region is left on merged tokens."""

    def __init__(self, region: Region, windows: Windows) -> None:
        self._region = region
        self._kept = windows.merged / windows.tokens

    def __call__(self, node: fx.Node) -> float:
        if node is self._region.entry:
            layout: object = self._region.layout
        else:
            step: Step | None = self._region.steps.get(node)
            layout = step.layout if step is not None else None
        if not isinstance(layout, TokenLayout) or not layout.is_merged:
            return 1.0
        left = sum(s.length * (self._kept if s.merged else 1.0) for s in layout.segments)
        return left / layout.length
