"""What was merged and what was not, with reasons: for people and for programs."""

from __future__ import annotations

import dataclasses
import io
from collections import Counter
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


@dataclass
class Report:
    """All regions of a compile.

    Attributes:
        regions: in graph order.
        notes: what concerns no single region: patterns without a match, a graph that could not
            be traced.
        seconds: time of each pass.
    """

    regions: list[RegionReport] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

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
        for name, seconds in other.seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def __str__(self) -> str:
        """Regions of one kind, size and fate in one row, with their reasons."""
        rows = Counter(
            (r.kind, r.tokens, r.merged_tokens, r.channels, r.status, r.reason)
            for r in self.regions
        )
        saved = Counter[tuple[Any, ...]]()
        for r in self.regions:
            key = (r.kind, r.tokens, r.merged_tokens, r.channels, r.status, r.reason)
            saved[key] += r.flops_before - r.flops_after
        table = Table(box=box.SIMPLE_HEAD, title=self.summary())
        for name in ("kind", "tokens", "channels", "regions", "status", "saved", "reason"):
            numeric = name in ("tokens", "channels", "regions", "saved")
            table.add_column(name, justify="right" if numeric else "left", overflow="fold")
        for key, count in rows.items():
            kind, tokens, merged, channels, status, reason = key
            length = f"{tokens} → {merged}" if merged != tokens else str(tokens)
            gain = f"{saved[key] / 1e9:.3g} GFLOP" if saved[key] else ""
            table.add_row(kind, length, str(channels), str(count), status, gain, reason)
        text = io.StringIO()
        Console(file=text, width=120, markup=False).print(table)
        return text.getvalue() + "".join(f"note: {note}\n" for note in self.notes)

    def summary(self) -> str:
        """One line: how many regions are merged, and what of the FLOPs is left."""
        if not self.regions:
            return "no attention or MLP region found"
        left = self.flops_after / self.flops_before if self.flops_before else 1.0
        return (
            f"{len(self.merged)} of {len(self.regions)} regions merged; "
            f"{left:.0%} of their FLOPs left"
        )
