"""Which part of a step an operation or a kernel belongs to."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from benchmarks.race import parts
from benchmarks.race.labels import operation, part_of_each
from benchmarks.race.profiled import host_peak, kernel_count, profile_step
from toma_fx.operations import SELECT

CPU = torch.device("cpu")


class Merged(nn.Module):
    """What the rewrite makes of one region, in small: plan, merge, linear, unmerge, add."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)
        self.register_buffer("toma_plan_0_destinations", torch.zeros(1, 4, 2, dtype=torch.int64))
        self.register_buffer("toma_plan_0_merging", torch.zeros(4, 2, 4))
        self.register_buffer("toma_plan_0_unmerging", torch.zeros(4, 4, 2))

    def forward(self, x: Tensor, order: Tensor) -> Tensor:
        entry = self.norm(x)
        phase = torch.full((), SELECT, dtype=torch.int32)
        plan = self.toma_plan_0_destinations, self.toma_plan_0_merging, self.toma_plan_0_unmerging
        torch.ops.toma_fx.plan_(entry, None, phase, *plan, 1e-3, "transpose", False)
        merged = torch.bmm(plan[1], entry.reshape(4, 4, 8))
        full = torch.bmm(plan[2], self.linear(merged)).view(1, 16, 8)
        ranks = torch.argsort(order)
        return (x + full).index_select(1, ranks)


@pytest.fixture
def labelled() -> dict[str, str]:
    gm = torch.export.export(Merged(), (torch.randn(1, 16, 8), torch.randperm(16))).module()
    found: dict[str, str] = {}
    for node, part in part_of_each(gm.graph).items():
        found.setdefault(f"{operation(node)} {len(found)}", part)
    return found


def parts_of(labelled: dict[str, str], name: str) -> list[str]:
    return [part for key, part in labelled.items() if key.split()[0] == name]


def test_parts_are_read_off_the_graph(labelled: dict[str, str]) -> None:
    assert parts_of(labelled, "plan_") == ["planning"]
    assert parts_of(labelled, "full") == ["planning"]  # the phase, which nothing else reads
    assert parts_of(labelled, "bmm") == ["merge", "unmerge"]
    assert parts_of(labelled, "linear") == ["linears"]
    assert parts_of(labelled, "layer_norm") == ["norms"]
    assert parts_of(labelled, "add") == ["other"]
    assert parts_of(labelled, "argsort") == ["planning"]
    assert parts_of(labelled, "index_select") == ["merge"]


def test_attention_and_convolutions_by_name() -> None:
    def plain(q: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, q, q).sum() + F.conv2d(x, weight).sum()

    traced = fx.symbolic_trace(plain)
    found = {operation(node): part for node, part in part_of_each(traced.graph).items()}
    assert found["scaled_dot_product_attention"] == "attention"
    assert found["conv2d"] == "convolutions"


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("graph_0_cpp_fused_norms_other_unmerge_3", "norms"),
        ("triton_poi_fused_merge_other_12", "merge"),
        ("triton_red_fused_other_1", "other"),
        ("cpp_fused_planning_0", "planning"),
        ("toma_fx::plan_", "planning"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::addmm", "linears"),
        ("aten::mkldnn_convolution", "convolutions"),
        ("## Call CompiledFxGraph abc ##", None),
    ],
)
def test_parts_of_events_by_name(name: str, part: str | None) -> None:
    assert parts.part_of_event(SimpleNamespace(name=name, input_shapes=[])) == part


def test_products_by_the_shapes_of_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    merge, other = ((4, 2, 4), (4, 4, 8)), ((4, 9, 9), (4, 9, 8))
    summand = result = (4, 2, 8)
    monkeypatch.setattr(parts, "_products", {merge: "merge"})
    with_result = ((*merge, result), "merge"), ((summand, *merge, result), "merge")
    for shapes, part in ((merge, "merge"), (other, "linears"), *with_result):
        event = SimpleNamespace(name="aten::bmm", input_shapes=[list(s) for s in shapes])
        assert parts.part_of_event(event) == part


def test_a_compiled_step_falls_into_parts() -> None:
    torch._dynamo.reset()
    model = Merged().eval()
    inputs = torch.randn(1, 16, 8), torch.randperm(16)
    with torch.no_grad():
        compiled = torch.compile(model.norm, backend=parts.BACKEND)
        compiled(inputs[0])
        found = profile_step(lambda: compiled(inputs[0]), CPU)
        plain = profile_step(lambda: model.linear(inputs[0]) + 1, CPU)
    seconds = parts.seconds_by_part(found, CPU)
    assert seconds["norms"] > 0
    assert seconds["merge"] == seconds["attention"] == 0
    assert parts.seconds_by_part(plain, CPU)["linears"] > 0
    assert kernel_count(plain, CPU) >= 2
    assert host_peak(plain) >= 2 * inputs[0].nbytes
