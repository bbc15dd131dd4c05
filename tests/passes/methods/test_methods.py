"""The competing methods: equal to their packages and papers, on UNets and on Flux."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.eager_merge import merged_by_hand, relative
from tests.eager_methods import HandMatch, heads_of, sampled_keys
from tests.eager_scope import scoped_by_hand
from tests.models import (
    flux,
    flux_inputs,
    sdxl,
    sdxl_inputs,
    stable_diffusion,
    stable_diffusion_inputs,
)
from tests.traced import Traced
from toma_fx import ConfigError, TomaConfig, config, explain, last_report, reuse_stats
from toma_fx.passes import methods

GRIDS = {512: (16, 32), 128: (8, 16), 256: (16, 16), 64: (8, 8)}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        yield


def merged(
    model: nn.Module, inputs: dict[str, Any], inner: str = "eager", **options: Any
) -> Tensor:
    chosen = {"inner_backend": inner, "regions": "all", "share": "block", "min_tokens": 1}
    if model in TRACED:
        run = TRACED[model].compiled(**{**chosen, **options})
    else:
        torch._dynamo.reset()
        run = torch.compile(model, backend="toma", fullgraph=True, options={**chosen, **options})
    result: Tensor = run(**inputs)[0]
    return result


TRACED: dict[nn.Module, Traced] = {}
"""Models that several tests compile, on 16×32 and 16×16 tokens."""


@cache
def shared_sdxl() -> Any:
    model = sdxl()
    TRACED[model] = Traced(model)
    return model


@cache
def shared_flux() -> Any:
    model = flux()
    TRACED[model] = Traced(model)
    return model


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("everywhere", [False, True], ids=["attention", "all"])
def test_tomesd_equals_its_package(ratio: float, everywhere: bool) -> None:
    """Bolya's own code on Stable Diffusion 1.5's layout, without its random choice in cells."""
    tomesd = pytest.importorskip("tomesd")
    model = stable_diffusion()
    inputs = stable_diffusion_inputs(model, 16, 32)
    regions = "all" if everywhere else ("self_attention",)
    result = merged(model, inputs, method="tomesd", ratio=ratio, regions=regions)
    assert len(last_report().merged) == (12 if everywhere else 4)
    plain = model(**inputs)[0]
    more = {"merge_crossattn": everywhere, "merge_mlp": everywhere, "max_downsample": 2}
    tomesd.apply_patch(model, ratio=ratio, use_rand=False, **more)
    expected = model(inputs.pop("sample"), **inputs)[0]  # its hook reads the size there
    tomesd.remove_patch(model)
    assert relative(expected, plain) > 1e-4
    assert relative(result, expected) < 1e-4


def half(block: int, blocks: int) -> bool:
    return block / blocks < 0.5


METHODS = {
    "tomesd": lambda blocks: lambda block: None,
    "tofu": lambda blocks: lambda block: half(block, blocks),
}


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("method", METHODS)
def test_matching_methods_equal_blocks_merged_by_hand(method: str, ratio: float) -> None:
    model = shared_sdxl()
    inputs = sdxl_inputs(model, 32, 64)
    with merged_by_hand(model, HandMatch(ratio, GRIDS.get, METHODS[method](4))):
        expected = model(**inputs)[0]
    result = merged(model, inputs, method=method, ratio=ratio)
    assert len(last_report().merged) == 12
    assert relative(result, expected) < 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_matching_methods_on_flux_equal_blocks_merged_by_hand(method: str) -> None:
    """Cells from position ids, rotary tables at what is left, text in place."""
    model = shared_flux()
    inputs = flux_inputs(model, 16, 16)
    with merged_by_hand(model, HandMatch(0.5, GRIDS.get, METHODS[method](4))):
        expected = model(**inputs)[0]
    result = merged(model, inputs, method=method)
    assert len(last_report().merged) == 6
    assert relative(result, expected) < 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_matching_methods_merge_once_a_block(method: str) -> None:
    """A scope adds back only the change, whatever brings it to full length."""
    model = shared_sdxl()
    inputs = sdxl_inputs(model, 32, 64)
    with scoped_by_hand(model, HandMatch(0.5, GRIDS.get, METHODS[method](4))):  # type: ignore[arg-type]
        expected = model(**inputs)[0]
    result = merged(model, inputs, method=method, scope="block")
    assert last_report().remarks == ["merged once a block: 4 blocks"]
    assert relative(result, expected) < 1e-4


def test_todo_samples_keys_and_values_of_self_attention_alone() -> None:
    model = shared_sdxl()
    inputs = sdxl_inputs(model, 32, 64)
    plain = model(**inputs)[0]
    with sampled_keys({n: heads_of(*GRIDS[n]) for n in GRIDS}):
        expected = model(**inputs)[0]
    result = merged(model, inputs, method="todo", ratio=0.75)
    assert {region.kind for region in last_report().merged} == {"self_attention"}
    assert len(last_report().merged) == 4
    assert relative(expected, plain) > 1e-4
    assert relative(result, expected) < 1e-4


@pytest.mark.parametrize("ratio", [0.5, 0.75])
def test_todo_on_flux(ratio: float) -> None:
    """Keys and values of the picture; text, queries and MLPs stay."""
    model = shared_flux()
    inputs = flux_inputs(model, 16, 16)
    rows = heads_of(16, 16) if ratio == 0.75 else list(range(0, 256, 2))
    with sampled_keys({256: rows}, text=32):
        expected = model(**inputs)[0]
    result = merged(model, inputs, method="todo", ratio=ratio)
    assert {region.kind for region in last_report().merged} == {"joint_attention", "parallel"}
    assert relative(result, expected) < 1e-4


def test_fused_keys_and_queries_cannot_be_sampled_apart() -> None:
    model = flux()
    model.fuse_qkv_projections()
    merged(model, flux_inputs(model, 16, 16), method="todo", ratio=0.75)
    assert not last_report().merged
    assert any("keys and values" in region.reason for region in last_report().regions)


@pytest.mark.parametrize("method", ["tomesd", "tofu", "todo"])
def test_odd_grids_and_half_precision(method: str) -> None:
    model = sdxl().bfloat16()
    inputs = sdxl_inputs(model, 26, 38)  # 13 × 19 tokens in the attention
    result = merged(model, inputs, method=method, ratio=0.75)
    assert result.shape == inputs["sample"].shape
    assert result.isfinite().all()
    assert relative(result, model(**inputs)[0]) < 0.2


@pytest.mark.parametrize("method", ["tomesd", "tofu", "todo"])
def test_generated_kernels_compute_the_same(method: str) -> None:
    model = flux(num_layers=0, num_single_layers=1)
    inputs = flux_inputs(model, 16, 16, batch=2)
    expected = merged(model, inputs, method=method, ratio=0.75)
    torch._dynamo.reset()
    assert relative(merged(model, inputs, "inductor", method=method, ratio=0.75), expected) < 1e-4


def test_what_plans_at_every_call_keeps_nothing() -> None:
    model = sdxl()
    merged(model, sdxl_inputs(model, 32, 64), method="tomesd")
    assert reuse_stats(model).groups == 0
    assert not last_report().notes


@pytest.mark.parametrize("method", ["tomesd", "tofu", "todo"])
def test_ratio_zero_is_the_plain_model(method: str) -> None:
    model = shared_sdxl()
    inputs = sdxl_inputs(model, 32, 64)
    assert torch.equal(merged(model, inputs, method=method, ratio=0.0), model(**inputs)[0])


def test_each_method_has_its_price() -> None:
    """Attention alone shrinks less; products by matrices are FLOPs, copies are not."""
    with torch.device("meta"):
        model = sdxl()
        inputs = sdxl_inputs(model, 64, 64)
    left = {}
    for method in ("toma", "tomesd", "todo"):
        config = TomaConfig(method=method, ratio=0.75, regions="all", min_tokens=1)
        left[method] = explain(model, config=config, **inputs).flops_after
    assert left["tomesd"] < left["toma"] < left["todo"]


@pytest.mark.parametrize(
    ("method", "ratio", "message"),
    [
        ("tomesd", 0.8, "2×2 cell"),
        ("tofu", 0.9, "2×2 cell"),
        ("todo", 0.25, "1 - 1/4"),
        ("tome", 0.5, "did you mean 'tomesd'"),
    ],
)
def test_ratios_that_a_method_cannot_take(method: str, ratio: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TomaConfig(method=method, ratio=ratio)


def test_todo_has_no_scope() -> None:
    with pytest.raises(ConfigError, match="no scope"):
        TomaConfig(method="todo", ratio=0.75, scope="block")


def test_every_name_of_a_method_is_known_at_the_door() -> None:
    assert tuple(methods.METHODS) == config.METHODS
