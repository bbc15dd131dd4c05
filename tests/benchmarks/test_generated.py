"""What Inductor generates for a GPU that is not there: CUDA graphs, launches, resources."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

pytest.importorskip("triton")
if shutil.which("g++") is None and not torch.cuda._is_compiled():
    pytest.skip("needs a C++ compiler", allow_module_level=True)

import toma_fx
from benchmarks.generated import resources
from benchmarks.generated.launches import by_part, launches
from benchmarks.generated.pretended import Lowered, lowered
from benchmarks.race.parts import BACKEND

OPTIONS: dict[str, Any] = {
    "ratio": 0.5,
    "regions": ("feed_forward",),
    "order": "stripe",
    "window": 4,
    "min_tokens": 16,
    "device": "h100",
}


class Block(nn.Module):
    """An MLP on `[B, N, 32]`, modulated by an embedding of the timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.lower = nn.Linear(8, 32), nn.Linear(32, 8)
        self.clock, self.norm = nn.Linear(8, 32), nn.LayerNorm(32)
        self.widen, self.narrow = nn.Linear(32, 64), nn.Linear(64, 32)
        self.q, self.k, self.v = (nn.Linear(32, 32) for _ in range(3))

    def forward(self, hidden: Tensor, timestep: Tensor) -> Tensor:
        angles = timestep[:, None] * torch.arange(1, 5, device=hidden.device)
        clock = self.clock(torch.cat((angles.sin(), angles.cos()), -1).to(hidden.dtype))
        x = self.lift(hidden) + clock[:, None]
        q, k, v = (
            part(x).unflatten(-1, (2, 16)).transpose(1, 2) for part in (self.q, self.k, self.v)
        )
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + attended.transpose(1, 2).flatten(2)
        x = x + self.narrow(nn.functional.gelu(self.widen(self.norm(x))))
        return self.lower(x)


def on_a_gpu(**options: Any) -> Lowered:
    def backend(gm: fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        return toma_fx.toma_backend(gm, examples, options={**OPTIONS, **options})

    with torch.device("meta"):
        model = Block().bfloat16().eval()
    inputs = {"hidden": torch.zeros(2, 64, 8).bfloat16(), "timestep": torch.zeros(2)}
    (found,) = lowered(model, inputs, backend)
    return found


def test_a_merged_step_is_one_cuda_graph_that_copies_its_arguments_alone() -> None:
    found = on_a_gpu(**{"triton.cudagraphs": True})
    assert len(toma_fx.last_report().merged) == 1
    (graph,) = found.graphs
    assert graph["changed"] == []
    assert len(graph["copied"]) == 2
    assert found.graph.disable_cudagraphs_reason is None
    assert {device.type for device in found.graph.device_node_mapping} == {"cuda"}
    calls = [line for line in found.code.splitlines() if "toma_fx.plan_.default(" in line]
    assert len(calls) == 1
    plans = calls[0].split("(", 1)[1].split(",")[3:6]
    assert all(plan.strip().startswith("arg") for plan in plans), "the plans were copied"


def test_plans_that_are_not_marked_as_static_would_forbid_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the metadata that the rewrite keeps is for."""
    rewriter = importlib.import_module("toma_fx.passes.rewrite.rewrite")
    monkeypatch.setattr(rewriter, "keep_metadata", lambda source, target: None)
    found = on_a_gpu(**{"triton.cudagraphs": True})
    assert all(graph["changed"] for graph in found.graphs)


def test_launches_by_part() -> None:
    found = launches(on_a_gpu(inner_backend=BACKEND))
    total = by_part(found)
    kinds = [launch.kind for launch in found]
    assert kinds.count("plan_") == 3
    assert kinds.count("bmm") == 2
    assert total["attention"]["launches"] == 1
    assert total["linears"]["launches"] >= 8
    assert (total["merge"]["launches"], total["unmerge"]["launches"]) == (1, 1)
    merged, full, matrix = 2 * 32 * 32, 2 * 64 * 32, 8 * 8 * 16
    assert total["merge"]["bytes"] == 2 * (merged + full + matrix)
    assert (
        sum(part["bytes"] for name, part in total.items() if name != "all")
        == (total["all"]["bytes"])
    )


def test_programs_that_fit_on_a_multiprocessor() -> None:
    hopper, turing = resources.ARCHITECTURES[90], resources.ARCHITECTURES[75]
    assert resources.programs(hopper, warps=4, registers=32, shared=0) == 16
    assert resources.programs(hopper, warps=1, registers=16, shared=0) == 32
    assert resources.programs(hopper, warps=4, registers=128, shared=0) == 4
    assert resources.programs(hopper, warps=4, registers=32, shared=64 * 1024) == 3
    assert resources.programs(turing, warps=8, registers=40, shared=0) == 4
    assert resources.programs(turing, warps=4, registers=32, shared=32 * 1024) == 2


def test_resources_of_a_kernel() -> None:
    case = next(case for case in resources.cases() if "greedy_tile" in case.kernel.__name__)
    found = resources.use(case, 90)
    assert 16 <= found.registers <= 255
    assert found.warps == case.options["num_warps"]
    assert found.programs >= 1
    text = resources.markdown({**facts(), "rows": [vars(found)]})
    assert f"| {found.registers}, {found.shared / 1024:.1f}, {found.programs} |" in text


def facts() -> dict[str, Any]:
    from benchmarks.machine import describe

    return describe()
