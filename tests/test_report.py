"""The report: numbers for programs, a table for people."""

from __future__ import annotations

import json
from typing import Any

from toma_fx import RegionReport, Report


def region(**changes: Any) -> RegionReport:
    fields: dict[str, Any] = {
        "module_path": "blocks.0.attn",
        "kind": "self_attention",
        "tokens": 64,
        "merged_tokens": 32,
        "channels": 16,
        "group": 0,
        "status": "merged",
        "reason": "",
        "flops_before": 4_000_000_000,
        "flops_after": 1_000_000_000,
    }
    return RegionReport(**{**fields, **changes})


REFUSED = region(
    kind="feed_forward",
    merged_tokens=64,
    group=None,
    status="refused",
    reason="no layout rule for aten.roll.default (at roll)",
    flops_after=4_000_000_000,
)


def test_totals_and_summary() -> None:
    report = Report([region(), region(module_path="blocks.1.attn"), REFUSED])
    assert len(report.merged) == 2
    assert (report.flops_before, report.flops_after) == (12_000_000_000, 6_000_000_000)
    assert report.summary() == "2 of 3 regions merged; 50% of their FLOPs left"


def test_an_empty_report_says_so() -> None:
    assert Report().summary() == "no attention or MLP region found"
    assert "no attention or MLP region found" in str(Report())


def test_nothing_counted_is_nothing_saved() -> None:
    report = Report([region(flops_before=0, flops_after=0)])
    assert "100% of their FLOPs left" in report.summary()


def test_the_table_joins_equal_fates_and_gives_reasons() -> None:
    text = str(Report([region(), region(module_path="other"), REFUSED], notes=["a pattern"]))
    rows = [line for line in text.splitlines() if "self_attention" in line]
    assert len(rows) == 1
    assert "64 → 32" in rows[0]
    assert " 2 " in rows[0]
    assert "8 → 2" in rows[0]
    refused = next(line for line in text.splitlines() if "feed_forward" in line)
    assert "refused" in refused
    assert "→" not in refused
    assert "GFLOP" not in refused
    assert "no layout rule for aten.roll.default" in text
    assert text.splitlines()[-1] == "note: a pattern"


def test_brackets_in_reasons_are_text() -> None:
    """A reason may quote shapes; they are no markup of the table."""
    text = str(Report([region(status="refused", reason="sizes [bold] and [2, 64]")]))
    assert "sizes [bold] and [2, 64]" in " ".join(text.split())


def test_it_is_plain_data() -> None:
    report = Report([region(), REFUSED], ["note"], {"find": 0.5})
    data = json.loads(json.dumps(report.to_dict()))
    assert data["regions"][0]["merged_tokens"] == 32
    assert data["regions"][1]["group"] is None
    assert (data["notes"], data["seconds"]) == (["note"], {"find": 0.5})
    assert [RegionReport(**item) for item in data["regions"]] == report.regions


def test_reports_of_several_graphs_add_up() -> None:
    report = Report([region()], ["one"], {"find": 1.0}, remarks=["merged once a block"])
    report.extend(Report([REFUSED], ["two"], {"find": 0.5, "plan": 0.25}))
    assert report.regions == [region(), REFUSED]
    assert report.notes == ["one", "two"]
    assert report.remarks == ["merged once a block"]
    assert "merged once a block\nnote: one" in str(report)
    assert report.seconds == {"find": 1.5, "plan": 0.25}
