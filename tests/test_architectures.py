"""SDXL and Flux: pictures are the reference's."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.eager_merge import HandMerge, merged_by_hand, relative
from tests.helpers import kinds
from tests.models import (
    flux,
    flux_inputs,
    positions,
    sdxl,
    sdxl_inputs,
)
from tests.remembering import small_sdxl as one_level_sdxl
from tests.traced import Traced
from toma_fx import last_report
from toma_fx.order import curve_table, order_from_positions, tile_order


def compiled(model: torch.nn.Module, inner: str = "eager", **options: Any) -> Any:
    torch._dynamo.reset()
    chosen = {"inner_backend": inner, "regions": "all", **options}
    return torch.compile(model, backend="toma", fullgraph=True, options=chosen)


SDXL_BLOCKS = 1 + 1 + 2  # down, middle, up; one layer each

CASES = [
    pytest.param(ratio, share, id=f"{ratio}-{share}")
    for ratio in (0.25, 0.5, 0.75)
    for share in ("region", "run")
]


@pytest.fixture(scope="module")
def small_sdxl() -> Any:
    return sdxl()


@pytest.fixture(scope="module")
def small_flux() -> Any:
    return flux()


@pytest.fixture(scope="module")
def traced_sdxl(small_sdxl: Any) -> Traced:
    return Traced(small_sdxl)


@pytest.fixture(scope="module")
def traced_flux(small_flux: Any) -> Traced:
    return Traced(small_flux)


@pytest.mark.parametrize(("ratio", "share"), CASES)
@torch.no_grad()
def test_sdxl_equals_blocks_merged_by_hand(
    small_sdxl: Any, traced_sdxl: Traced, ratio: float, share: str
) -> None:
    inputs = sdxl_inputs(small_sdxl, 32, 48)
    by_hand = HandMerge(ratio, share, lambda n: tile_order((16, 24), 8))
    with merged_by_hand(small_sdxl, by_hand):
        expected = small_sdxl(**inputs)[0]
    run = traced_sdxl.compiled(inner_backend="eager", regions="all", ratio=ratio, share=share)
    result = run(**inputs)[0]
    assert len(last_report().merged) == SDXL_BLOCKS * 3
    assert relative(result, expected) < 1e-4
    assert relative(result, small_sdxl(**inputs)[0]) > 1e-3  # merging did happen


def flux_sequence(n: int) -> Tensor:
    return order_from_positions(positions(16, 24), 8, "tile", curve_table())


@pytest.mark.parametrize(("ratio", "share"), CASES)
@torch.no_grad()
def test_flux_equals_blocks_merged_by_hand(
    small_flux: Any, traced_flux: Traced, ratio: float, share: str
) -> None:
    inputs = flux_inputs(small_flux, 16, 24)
    with merged_by_hand(small_flux, HandMerge(ratio, share, flux_sequence)):
        expected = small_flux(**inputs)[0]
    run = traced_flux.compiled(inner_backend="eager", regions="all", ratio=ratio, share=share)
    result = run(**inputs)[0]
    assert kinds(last_report()) == {
        ("joint_attention", 384): 2,
        ("feed_forward", 384): 2,
        ("parallel", 384): 2,
    }
    assert relative(result, expected) < 1e-4
    assert relative(result, small_flux(**inputs)[0]) > 1e-3


@torch.no_grad()
def test_flux_batches_select_for_every_item(small_flux: Any) -> None:
    inputs = flux_inputs(small_flux, 16, 24, batch=2)
    items = []
    for item in range(2):
        alone = {
            name: value[item : item + 1] if name in BATCHED else value
            for name, value in inputs.items()
        }
        with merged_by_hand(small_flux, HandMerge(0.5, "run", flux_sequence)):
            items.append(small_flux(**alone)[0])
    result = compiled(small_flux, inner="aot_eager")(**inputs)[0]
    assert relative(result, torch.cat(items)) < 1e-4


BATCHED = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep", "guidance")


@torch.no_grad()
def test_pseudo_inverse_unmerge_equals_the_reference(small_sdxl: Any) -> None:
    inputs = sdxl_inputs(small_sdxl, 32, 48)
    by_hand = HandMerge(0.5, "run", lambda n: tile_order((16, 24), 8), unmerging="pinv")
    with merged_by_hand(small_sdxl, by_hand):
        expected = small_sdxl(**inputs)[0]
    assert relative(compiled(small_sdxl, unmerge="pinv")(**inputs)[0], expected) < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_stays_near_the_reference(dtype: torch.dtype) -> None:
    model = flux().to(dtype)
    inputs = flux_inputs(model, 16, 24)
    with merged_by_hand(model, HandMerge(0.5, "region", flux_sequence)):
        expected = model(**inputs)[0]
    result = compiled(model, inner="eager", share="region")(**inputs)[0]
    assert result.dtype == dtype
    assert relative(result, expected) < 2e-2


@torch.no_grad()
def test_ratio_zero_is_the_plain_model(small_sdxl: Any) -> None:
    inputs = sdxl_inputs(small_sdxl, 32, 32)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = compiled(small_sdxl, ratio=0)(**inputs)[0]
    assert relative(result, small_sdxl(**inputs)[0]) < 1e-5
    assert any("ratio 0 removes no token" in str(warning.message) for warning in caught)


@torch.no_grad()
def test_inductor_equals_the_reference() -> None:
    """Generated kernels, both architectures, once: the other tests use cheaper compilers."""
    unet: Any = one_level_sdxl(transformer_layers_per_block=1, mid_block_type=None)
    inputs = sdxl_inputs(unet, 16, 24)
    with merged_by_hand(unet, HandMerge(0.5, "run", lambda n: tile_order((16, 24), 8))):
        expected = unet(**inputs)[0]
    assert relative(compiled(unet, inner="inductor")(**inputs)[0], expected) < 1e-4
    transformer = flux(num_layers=1, num_single_layers=1)
    inputs = flux_inputs(transformer, 16, 24)
    with merged_by_hand(transformer, HandMerge(0.5, "run", flux_sequence)):
        expected = transformer(**inputs)[0]
    assert relative(compiled(transformer, inner="inductor")(**inputs)[0], expected) < 1e-4


@torch.no_grad()
def test_shapes_in_turn_compile_once_each(small_sdxl: Any) -> None:
    """Odd grids and batches in one process: no crash, no NaN, one compile a shape."""
    run = compiled(small_sdxl, min_tokens=1)
    torch._dynamo.utils.counters.clear()
    shapes = [(24, 40, 1), (26, 38, 2), (13, 19, 1), (13, 19, 2)]
    for _ in range(2):
        for height, width, batch in shapes:
            inputs = sdxl_inputs(small_sdxl, 2 * height, 2 * width, batch)
            result = run(**inputs)[0]
            assert result.shape == inputs["sample"].shape
            assert torch.isfinite(result).all()
    assert torch._dynamo.utils.counters["toma_fx"]["graphs_rewritten"] == len(shapes)
