"""`explain` tells what would be merged and runs nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from tests.helpers import CHANNELS, SMALL, Attention, Block, Sequence, merged, repeated_tokens
from toma_fx import Report, TomaConfig, explain

CONFIG = TomaConfig(**SMALL)
CALLS: list[str] = []

_library = torch.library.Library("toma_fx_explain_tests", "DEF")
_library.define("counted(Tensor x) -> Tensor")


def _counted(x: Tensor) -> Tensor:
    CALLS.append("counted")
    return x.clone()


_library.impl("counted", _counted, "CPU")
torch.library.register_fake("toma_fx_explain_tests::counted", torch.empty_like, lib=_library)


class Counted(nn.Module):
    """Tells by `CALLS` whether it really ran."""

    def __init__(self, broken: bool = False) -> None:
        super().__init__()
        self.first, self.second = Attention(), Block()
        self.broken = broken

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x) + torch.ops.toma_fx_explain_tests.counted(x[:, :1])
        if self.broken:
            torch._dynamo.graph_break()
        return self.second(x) + torch.ops.toma_fx_explain_tests.counted(x[:, :1])


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()
    CALLS.clear()


def kinds(report: Report) -> list[str]:
    return [region.kind for region in report.merged]


def test_it_tells_what_the_backend_would_do() -> None:
    model, x = Sequence(Attention(), Block()), repeated_tokens(2, 64)
    report = explain(model, x, config=CONFIG)
    assert report.regions == merged(model, x).report.regions


def test_it_runs_no_operation() -> None:
    report = explain(Counted(), torch.randn(2, 64, CHANNELS), config=CONFIG)
    assert kinds(report)
    assert CALLS == []


def test_it_reports_all_graphs_of_a_model_with_breaks() -> None:
    whole = explain(Counted(), torch.randn(2, 64, CHANNELS), config=CONFIG)
    report = explain(Counted(broken=True), torch.randn(2, 64, CHANNELS), config=CONFIG)
    assert [r.kind for r in report.regions] == [r.kind for r in whole.regions]
    assert CALLS == []


def test_it_works_on_the_meta_device() -> None:
    model = Sequence(Attention(), Block()).to("meta")
    report = explain(model, torch.empty(2, 64, CHANNELS, device="meta"), config=CONFIG)
    assert kinds(report) == ["self_attention", "feed_forward"]
    assert report.regions[0].flops_after < report.regions[0].flops_before


def test_a_large_model_on_the_meta_device_needs_no_memory() -> None:
    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(2**16, device="meta")
            self.a = nn.Linear(2**16, 2**18, device="meta")
            self.b = nn.Linear(2**18, 2**16, device="meta")

        def forward(self, x: Tensor) -> Tensor:
            return x + self.b(self.a(self.norm(x)).relu())

    report = explain(Large(), torch.empty(2, 4096, 2**16, device="meta"), config=CONFIG)
    assert report.regions[0].merged_tokens == 2048


def test_keyword_arguments_and_defaults() -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, x: Tensor, *, scale: float = 1.0, flag: bool = False) -> Tensor:
            return self.block(x * scale) if flag else x

    x = torch.randn(2, 256, CHANNELS)
    assert explain(Keyword(), x=x).regions == []
    report = explain(Keyword(), x=x, scale=2.0, flag=True)
    assert "the grid of the 256 tokens" in report.regions[0].reason


@pytest.mark.parametrize("broken", [False, True])
def test_a_compile_afterwards_sees_nothing_of_it(broken: bool) -> None:
    model, x = Counted(broken), torch.randn(2, 64, CHANNELS)
    with torch.no_grad():
        wanted = model(x)
    seen = []

    def backend(gm: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        seen.append(gm)
        return gm.forward

    explain(model, x, config=CONFIG)
    CALLS.clear()
    with torch.no_grad():
        got = torch.compile(model, backend=backend)(x)
    assert len(seen) == 1 + broken
    assert torch.equal(got, wanted)
    assert len(CALLS) == 2


@pytest.mark.parametrize("broken", [False, True])
def test_a_compiled_model_stays_compiled(broken: bool) -> None:
    model, x = Counted(broken), torch.randn(2, 64, CHANNELS)
    seen = []

    def backend(gm: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        seen.append(gm)
        return gm.forward

    compiled = torch.compile(model, backend=backend)
    with torch.no_grad():
        wanted = compiled(x)
        count = len(seen)
        explain(model, x, config=CONFIG)
        assert torch.equal(compiled(x), wanted)
    assert len(seen) == count


def test_asking_many_times_asks_anew() -> None:
    """More often than Dynamo recompiles one function."""
    model, x = Block(), torch.randn(2, 64, CHANNELS)
    limit = torch._dynamo.config.recompile_limit
    reports = [explain(model, x, config=CONFIG) for _ in range(limit + 2)]
    assert all(report.regions == reports[0].regions for report in reports)
    assert reports[-1].merged


def test_it_leaves_gradients_and_modes_as_they_were() -> None:
    model, x = Block(), torch.randn(2, 64, CHANNELS, requires_grad=True)
    assert explain(model, x, config=CONFIG).merged
    assert torch.is_grad_enabled()
    assert x.grad is None
    assert not model.training


def test_active_dropout_is_explained() -> None:
    model = Block(lambda b, h: nn.functional.dropout(h, 0.1, b.training)).train()
    report = explain(model, torch.randn(2, 64, CHANNELS), config=CONFIG)
    assert "call model.eval()" in report.regions[0].reason
