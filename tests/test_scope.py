"""Blocks and spans that merge once, beside the hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.eager_merge import HandMerge, relative
from tests.eager_scope import scoped_by_hand
from tests.models import (
    flux,
    flux_inputs,
    positions,
    sd3,
    sd3_inputs,
    sdxl,
    sdxl_inputs,
    stable_diffusion,
    stable_diffusion_inputs,
)
from tests.tiny import Oracle, Tiny, generation, same
from tests.tiny import compiled as tiny
from tests.traced import Traced
from toma_fx import last_report, reuse_stats
from toma_fx.order import curve_table, order_from_positions, tile_order

GRID = (16, 24)


def compiled(model: nn.Module, inner: str = "eager", **options: Any) -> Any:
    torch._dynamo.reset()
    chosen = {"inner_backend": inner, "regions": "all", **options}
    return torch.compile(model, backend="toma", fullgraph=True, options=chosen)


def flux_sequence(n: int) -> Tensor:
    return order_from_positions(positions(*GRID), 8, "tile", curve_table())


def tiles(n: int) -> Tensor:
    """Of `GRID`, or of the level above it in a UNet."""
    return tile_order(GRID if n == 384 else (32, 48), 8)


Architecture = tuple[nn.Module, dict[str, Any], Callable[[int], Tensor]]


@pytest.fixture(scope="module")
def traced(architectures: dict[str, Architecture]) -> dict[str, Traced]:
    torch._dynamo.reset()
    return {name: Traced(model) for name, (model, *_) in architectures.items()}


@pytest.fixture(scope="module")
def architectures() -> dict[str, Architecture]:
    """Three blocks in a row each, so that a span of two leaves one."""
    unet = sdxl(transformer_layers_per_block=(1, 3))
    plain = stable_diffusion(transformer_layers_per_block=2)
    transformer = flux(num_layers=3, num_single_layers=3)
    dual = sd3(dual_attention_layers=(0, 1))
    return {
        "sdxl": (unet, sdxl_inputs(unet, 32, 48), tiles),
        "sd15": (plain, stable_diffusion_inputs(plain, 32, 48), tiles),
        "flux": (transformer, flux_inputs(transformer, *GRID), flux_sequence),
        "sd3": (dual, sd3_inputs(dual, 32, 48), tiles),
    }


SPANS = [pytest.param({"scope": "block"}, 1, id="block")]
SPANS += [pytest.param({"scope": "span", "span": n}, n, id=f"span-{n}") for n in (2, 4)]


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
@pytest.mark.parametrize(("options", "span"), SPANS)
@pytest.mark.parametrize("name", ["sdxl", "flux"])
@torch.no_grad()
def test_equals_blocks_merged_by_hand(
    architectures: Any, traced: Any, name: str, options: dict[str, Any], span: int, ratio: float
) -> None:
    model, inputs, sequence = architectures[name]
    with scoped_by_hand(model, HandMerge(ratio, "run", sequence), span):
        expected = model(**inputs)[0]
    run = traced[name].compiled(inner_backend="eager", regions="all", ratio=ratio, **options)
    result = run(**inputs)[0]
    assert {region.reason for region in last_report().merged} == {""}
    assert relative(result, expected) < 1e-4
    assert result.stride() == model(**inputs)[0].stride()
    assert relative(result, model(**inputs)[0]) > 1e-3  # merging did happen


@pytest.mark.parametrize("name", ["sd15", "sd3"])
@torch.no_grad()
def test_other_architectures_equal_the_hand(architectures: Any, name: str) -> None:
    model, inputs, sequence = architectures[name]
    with scoped_by_hand(model, HandMerge(0.5, "run", sequence), 2):
        expected = model(**inputs)[0]
    result = compiled(model, scope="span", span=2)(**inputs)[0]
    assert {region.reason for region in last_report().merged} == {""}
    assert relative(result, expected) < 1e-4


@torch.no_grad()
def test_each_block_may_have_its_own_plan(architectures: Any) -> None:
    model, inputs, sequence = architectures["sdxl"]
    with scoped_by_hand(model, HandMerge(0.5, "region", sequence)):
        expected = model(**inputs)[0]
    result = compiled(model, "aot_eager", scope="block", share="block")(**inputs)[0]
    assert relative(result, expected) < 1e-4


@torch.no_grad()
def test_pseudo_inverse_unmerges_the_change(architectures: Any) -> None:
    model, inputs, sequence = architectures["flux"]
    with scoped_by_hand(model, HandMerge(0.5, "run", sequence, unmerging="pinv")):
        expected = model(**inputs)[0]
    result = compiled(model, scope="block", unmerge="pinv")(**inputs)[0]
    assert relative(result, expected) < 1e-4


@pytest.mark.parametrize(("options", "span"), SPANS[:2])
@pytest.mark.parametrize("name", ["sdxl", "flux"])
@torch.no_grad()
def test_bfloat16_stays_near_the_hand(name: str, options: dict[str, Any], span: int) -> None:
    if name == "flux":
        model: Any = flux().bfloat16()
        inputs, sequence = flux_inputs(model, *GRID), flux_sequence
    else:
        model = sdxl(transformer_layers_per_block=(1, 2)).bfloat16()
        inputs, sequence = sdxl_inputs(model, 32, 48), tiles
    with scoped_by_hand(model, HandMerge(0.5, "run", sequence), span):
        expected = model(**inputs)[0]
    result = compiled(model, **options)(**inputs)[0]
    assert result.dtype == torch.bfloat16
    assert relative(result, expected) < 2e-2


@torch.no_grad()
def test_inductor_equals_the_hand() -> None:
    """Generated kernels, once: the other tests use cheaper compilers."""
    model = flux(num_layers=1, num_single_layers=2)
    inputs = flux_inputs(model, *GRID)
    with scoped_by_hand(model, HandMerge(0.5, "run", flux_sequence), 2):
        expected = model(**inputs)[0]
    result = compiled(model, "inductor", scope="span", span=2)(**inputs)[0]
    assert relative(result, expected) < 1e-4


class BlockOracle(Oracle):
    """The whole block by hand, on the merged stream; plans and rules as ever."""

    def __call__(self, *given: Tensor, stream: str = "default") -> Tensor:
        plan = self.plan(given, stream)
        phase = self.count(*given, stream=stream)
        hidden, timestep, prompt, ids = given
        x = self.model.lift(hidden)
        plan.update(phase, x, ids)
        rows = plan.rows(len(hidden))
        tables = [table[rows].unsqueeze(1) for table in self.model.tables(ids)]
        before = plan.merge(x)
        after = before + self.model.attend(self.model.entry(before, timestep, prompt), *tables)
        after = after + self.model.mlp(self.model.norm2(after))
        return self.model.lower(x + plan.unmerge(after - before))


@torch.no_grad()
def test_plans_of_the_stream_are_reused_across_steps() -> None:
    model = Tiny()
    options: dict[str, Any] = {"select_every": 4, "weigh_every": 2}
    run = tiny(model, scope="block", **options)
    oracle = BlockOracle(model, **options)
    for picture in range(2):
        for call in generation(range(10, 0, -1), picture=picture):
            assert same(run(*call), oracle(*call))
    assert last_report().remarks == ["merged once a block: 1 blocks"]
    stats = reuse_stats(model)
    assert (stats.selections, stats.weighings, stats.reuses) == (6, 10, 10)
    assert not same(run(*call), Oracle(model, **options)(*call))
