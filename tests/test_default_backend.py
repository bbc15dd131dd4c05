"""`torch.compiler.set_default_backend("toma")`: every compile of a process comes by."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import toma_fx
from tests.apart import OPTIONS, Denoiser, picture, run
from tests.helpers import Attention
from tests.tiny import one_thread
from toma_fx import last_report, reuse_stats

__all__ = ["one_thread"]  # the fixture of these tests

pytestmark = pytest.mark.skipif(
    not hasattr(torch.compiler, "set_default_backend"), reason="from torch 2.13 on"
)


@pytest.fixture(autouse=True)
def default() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    torch.compiler.set_default_backend("toma")
    yield
    torch.compiler.set_default_backend(None)


def counted(name: str) -> int:
    return int(torch._dynamo.utils.counters["toma_fx"][name])


class Encoder(nn.Module):
    """Self-attention over words, as a text encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()

    def forward(self, words: Tensor) -> Tensor:
        return self.attention(words)


def test_other_models_are_passed_on_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    before, model, words = last_report(), Encoder(), torch.randn(1, 64, 16)
    told: list[str] = []
    monkeypatch.setattr("toma_fx.passes.runner.tell_passed_on", told.append)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled = torch.compile(model, options={**OPTIONS})
        assert torch.equal(compiled(words), model(words))
    assert last_report() is before
    assert (counted("graphs_passed_on"), counted("graphs_rewritten")) == (1, 0)
    assert told == ["it shows no step of a denoiser"]
    torch.compiler.set_default_backend(None)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="toma", options={**OPTIONS})
    with pytest.warns(UserWarning, match="no single timestep input"):
        assert not torch.equal(compiled(words), model(words))  # asked for by name


def test_a_denoiser_is_merged_whole_and_block_by_block() -> None:
    whole = Denoiser()
    run(torch.compile(whole, options=OPTIONS), picture())
    model = Denoiser()
    toma_fx.follow(model)
    for block in (*model.blocks, *model.others):
        block.compile(dynamic=True, options=OPTIONS)
    run(model, picture())
    assert counted("graphs_passed_on") == 0
    assert reuse_stats(whole).selections == reuse_stats(model).selections == 4


@pytest.mark.parametrize(
    "how",
    [
        {"mode": "default"},
        {"mode": "max-autotune-no-cudagraphs", "dynamic": True},
        {"options": {"epilogue_fusion": True, "triton.cudagraphs": False}, "dynamic": False},
    ],
)
def test_what_engines_pass_is_accepted(
    how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def quick(gm: Any, inputs: Any, **_: Any) -> Any:
        return gm.forward

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", quick)
    model, words = Encoder(), torch.randn(1, 64, 16)
    assert torch.equal(torch.compile(model, **how)(words), model(words))
    assert counted("graphs_passed_on") == 1
