"""Where the time of a compile goes: phases that add up, and the tables made of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from benchmarks import compile_time
from benchmarks.compile_phases import STAGES, grouped, measured
from toma_fx.errors import PlainModelWarning

WAYS = ("inductor", "toma", "refresh")


class Layer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x @ x).relu()


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    torch._dynamo.reset()
    cold = torch._inductor.config.patch(force_disable_caches=True)
    with pytest.warns(PlainModelWarning), cold, measured() as taken, torch.no_grad():
        torch.compile(Layer(), backend="toma")(torch.randn(8, 8))
    return taken


def test_phases_add_up(found: dict[str, Any]) -> None:
    phases = found["phases"]
    assert sum(phases.values()) == pytest.approx(found["seconds"])
    assert all(phases[phase] >= 0 for phase in phases if phase != "other")
    assert phases["dynamo"] > 0
    assert phases["normalize"] > 0


def test_counts(found: dict[str, Any]) -> None:
    counts = found["counts"]
    assert counts["graphs"] >= 1
    assert counts["nodes"] >= 2
    assert counts["kernels"] >= 1


def test_stages_become_one_phase(found: dict[str, Any]) -> None:
    few = grouped(found["phases"])
    assert [*few][:2] == ["dynamo", "passes"]
    assert not set(few) & set(STAGES)
    assert sum(few.values()) == pytest.approx(found["seconds"])


def test_rows_of_the_page() -> None:
    seconds = {"inductor": 100.0, "toma": 120.0, "apart inductor": 20.0, "apart toma": 24.0}
    (row,) = compile_time.doc_rows({"flux": seconds})
    assert row == ["Flux, small", "100 s", "1.20", "1.20", "0.20"]
    more = {"refresh": 150.0, "apart refresh": 30.0}
    (row,) = compile_time.doc_rows({"flux": {**seconds, **more}})
    assert row[5:] == ["1.50", "1.50", "0.20"]


def test_a_table_of_all_ways(found: dict[str, Any]) -> None:
    ways = (*WAYS, *(compile_time.APART + way for way in WAYS))
    table = compile_time._phase_table("flux", dict.fromkeys(ways, found))
    console = Console(record=True, width=200)
    console.print(table)
    text = console.export_text()
    assert "(1.00)" in text
    assert "number of graphs" in text
