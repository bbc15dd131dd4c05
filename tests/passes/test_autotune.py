"""Regions compiled and timed alone: counts, classes, and what the report says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers import SMALL, Attention, Block, Cross, Joint, Sequence, capture, merged
from tests.helpers import repeated_tokens as tokens
from toma_fx import ConfigError, TomaConfig, rewrite
from toma_fx.passes import autotune
from toma_fx.passes.find.region import Forecast


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every region that is measured, with a clock that says merging wins for attention alone."""
    seen: list[Any] = []

    def compiled(gm: Any, inputs: Any) -> Any:
        return lambda: seen.append(gm(*inputs))

    def timed(runs: Any, rounds: Any, device: Any) -> dict[str, list[float]]:
        return {"0": [2.0], "1": [1.0]}

    monkeypatch.setattr(autotune, "_compiled", compiled)
    monkeypatch.setattr(autotune, "interleaved", timed)
    return seen


def tuned(model: Any, *args: Tensor) -> Any:
    gm, inputs = capture(model, *args)
    return rewrite(gm, inputs, TomaConfig(**{**SMALL, "regions": "auto", "autotune": True}))


def test_one_region_of_each_class_is_measured(measured: list[Any]) -> None:
    model = Sequence(*(part for _ in range(3) for part in (Attention(), Block())))
    report = tuned(model, tokens(2, 64)).report
    assert len(report.merged) == 6
    assert len(measured) == 2 * 2  # two classes, plain and merged, each run once before the clock
    assert {(r.seconds_before, r.seconds_after) for r in report.regions} == {(2.0, 1.0)}


@pytest.mark.parametrize("kind", ["attention", "cross", "joint"])
def test_a_cut_out_region_runs_plain_and_merged_alike(measured: list[Any], kind: str) -> None:
    """On random inputs both return finite tensors of the same shapes."""
    x, text = tokens(2, 64), torch.randn(2, 7, 16)
    model, args = {
        "attention": (Attention(), (x,)),
        "cross": (Cross(), (x, text)),
        "joint": (Joint(), (x, text)),
    }[kind]
    report = tuned(model, *args).report
    assert report.merged
    for plain, other in zip(measured[::2], measured[1::2], strict=True):
        assert [p.shape for p in plain] == [o.shape for o in other]
        assert all(part.isfinite().all() for part in (*plain, *other))


def test_what_does_not_win_stays(measured: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "interleaved", lambda *_: {"0": [1.0], "1": [1.5]})
    report = tuned(Block(), tokens(2, 64)).report
    assert report.regions[0].status == "skipped"
    assert report.regions[0].reason == "merging gains nothing: measured 1 s → 1.5 s"


def test_really_compiled_and_timed() -> None:
    report = tuned(Block(), tokens(2, 64)).report
    (region,) = report.regions
    assert region.seconds_before > 0
    assert region.status in ("merged", "skipped")
    if region.status == "skipped":
        assert "measured" in region.reason


def test_on_the_meta_device_it_predicts() -> None:
    gm, inputs = capture(Block().to("meta"), torch.empty(2, 64, 16, device="meta"))
    config = TomaConfig(**{**SMALL, "regions": "auto", "autotune": True})
    (region,) = rewrite(gm, inputs, config).report.regions
    assert "measured" not in region.reason


def test_it_needs_a_choice() -> None:
    with pytest.raises(ConfigError, match='autotune chooses regions: it needs regions="auto"'):
        TomaConfig(autotune=True, regions="all")


def test_a_forecast_reads_well() -> None:
    assert str(Forecast(0.002, 1.5e-5, "measured")) == "measured 2 ms → 15 µs"
    assert merged(Block(), tokens(2, 64)).region.seconds_before > 0
