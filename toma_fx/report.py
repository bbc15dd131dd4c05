"""What was merged and what was not, with reasons: for people and for programs."""

from __future__ import annotations

import dataclasses
import io
import re
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class RegionReport:
    """One attention or MLP of the model.

    Attributes:
        module_path: path of its module, as in `named_modules`.
        kind: `self_attention`, `cross_attention`, `joint_attention`, `parallel`, `feed_forward`.
        tokens: length of its stream.
        merged_tokens: length after merging; `tokens` where nothing is merged.
        channels: width of its hidden states.
        group: number of the plan that it uses, None where nothing is merged.
        status: `merged`, `skipped` (by choice) or `refused` (not proven to be safe).
        reason: why it is not merged; for merged regions a remark on windows, or nothing.
        flops_before: FLOPs of a call at full length.
        flops_after: FLOPs of a call as it will run, merge and unmerge included.
        seconds_before: of a call at full length, predicted or measured; 0 where not asked.
        seconds_after: of a call as it will run.
    """

    module_path: str
    kind: str
    tokens: int
    merged_tokens: int
    channels: int
    group: int | None
    status: str
    reason: str
    flops_before: int
    flops_after: int
    seconds_before: float = 0.0
    seconds_after: float = 0.0


@dataclass(frozen=True)
class ModelForecast:
    """What the passes expect of a whole graph on a device.

    Attributes:
        device: name of the profile.
        source: of its rates: a data sheet, or a measurement.
        seconds_before: a call of the plain graph.
        seconds_after: a call of the merged graph, planning included.
        planning_seconds: of it, what planning costs a call, on average over its schedule.
        plan_bytes: memory of the plans, of all slots.
        memory_bytes: of what tokens were: values kept between calls, of all slots.
    """

    device: str
    source: str
    seconds_before: float
    seconds_after: float
    planning_seconds: float
    plan_bytes: int
    memory_bytes: int = 0

    @property
    def speedup(self) -> float:
        """How many times faster a call becomes."""
        return self.seconds_before / self.seconds_after if self.seconds_after else 1.0

    def __add__(self, other: ModelForecast) -> ModelForecast:
        """Two graphs of one model, one after the other."""
        return ModelForecast(
            self.device,
            self.source,
            self.seconds_before + other.seconds_before,
            self.seconds_after + other.seconds_after,
            self.planning_seconds + other.planning_seconds,
            self.plan_bytes + other.plan_bytes,
            self.memory_bytes + other.memory_bytes,
        )

    def __str__(self) -> str:
        return (
            f"{self.device}: {seconds_text(self.seconds_before)} → "
            f"{seconds_text(self.seconds_after)} a call predicted, {self.speedup:.2f}×; planning "
            f"{seconds_text(self.planning_seconds)}, {self._kept()}"
        )

    def _kept(self) -> str:
        name, size = (
            ("memory", self.memory_bytes) if self.memory_bytes else ("plans", self.plan_bytes)
        )
        return f"{name} {size / 2**20:.1f} MiB"


def seconds_text(seconds: float) -> str:
    """`1.25 ms`: three digits in the unit that suits."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


@dataclass
class Report:
    """All regions of a compile.

    Attributes:
        regions: in graph order.
        notes: what concerns no single region: patterns without a match, a graph that could not
            be traced.
        seconds: time of each pass.
        forecast: what is expected of the whole model; None where it could not be traced.
        remarks: what is as it should be and no single region tells: how many blocks merge once.
        plain: why the plain model runs though nothing was traced: Dynamo's limit; else empty.
    """

    regions: list[RegionReport] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    forecast: ModelForecast | None = None
    remarks: list[str] = field(default_factory=list)
    plain: str = ""

    @property
    def merged(self) -> list[RegionReport]:
        return [region for region in self.regions if region.status == "merged"]

    @property
    def flops_before(self) -> int:
        return sum(region.flops_before for region in self.regions)

    @property
    def flops_after(self) -> int:
        return sum(region.flops_after for region in self.regions)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dictionaries, strings and numbers; ready for JSON."""
        return dataclasses.asdict(self)

    def extend(self, other: Report) -> None:
        """Append the report of another graph of the same model."""
        self.regions += other.regions
        self.notes += other.notes
        self.remarks += other.remarks
        if other.forecast is not None:
            self.forecast = self.forecast + other.forecast if self.forecast else other.forecast
        for name, seconds in other.seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def classes(self) -> list[list[RegionReport]]:
        """Regions of one kind, size and fate, in the order of their first."""
        found: dict[tuple[Any, ...], list[RegionReport]] = {}
        for r in self.regions:
            key = (r.kind, r.tokens, r.merged_tokens, r.channels, r.status, general(r.reason))
            found.setdefault(key, []).append(r)
        return list(found.values())

    def __str__(self) -> str:
        """A table with a row for each class of regions, then the forecast and the notes."""
        table = Table(box=box.SIMPLE_HEAD, title=self.summary())
        for name in ("kind", "tokens", "channels", "regions", "status", "GFLOP", "time", "reason"):
            numeric = name in ("tokens", "channels", "regions", "GFLOP", "time")
            table.add_column(name, justify="right" if numeric else "left", overflow="fold")
        for members in self.classes():
            table.add_row(*_row(members))
        text = io.StringIO()
        Console(file=text, width=140, markup=False).print(table)
        notes = [f"{remark}\n" for remark in self.remarks]
        notes += [f"note: {note}\n" for note in self.notes]
        return "".join((text.getvalue(), f"{self.forecast}\n" if self.forecast else "", *notes))

    def summary(self) -> str:
        """One line: how many regions are merged, and what of the FLOPs is left."""
        if self.plain:
            return f"the plain model runs: {self.plain}"
        if not self.regions:
            return "no attention or MLP region found"
        left = self.flops_after / self.flops_before if self.flops_before else 1.0
        return (
            f"{len(self.merged)} of {len(self.regions)} regions merged; "
            f"{left:.0%} of their FLOPs left"
        )


def _row(members: list[RegionReport]) -> tuple[str, ...]:
    first = members[0]
    tokens = _change(str(first.tokens), str(first.merged_tokens))
    giga = [sum(getattr(m, f"flops_{side}") for m in members) / 1e9 for side in ("before", "after")]
    seconds = [sum(getattr(m, f"seconds_{side}") for m in members) for side in ("before", "after")]
    time = _change(*map(seconds_text, seconds)) if seconds[0] else ""
    flops = _change(*(f"{value:.4g}" for value in giga))
    head = (first.kind, tokens, str(first.channels), str(len(members)), first.status)
    return (*head, flops, time, first.reason)


def _change(before: str, after: str) -> str:
    return before if before == after else f"{before} → {after}"


def general(reason: str) -> str:
    """A reason without the node where it was found, which differs between regions of one class."""
    return re.sub(r" \([^()]*\)$", "", reason)
