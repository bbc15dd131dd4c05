"""Models of today equal blocks merged by hand, whether windows divide their grids or not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    Flux2Transformer2DModel,
    LTXVideoTransformer3DModel,
    QwenImageTransformer2DModel,
    WanTransformer3DModel,
    ZImageTransformer2DModel,
)
from torch import Tensor, nn

from tests.eager_blocks import Runs, merged_by_hand
from tests.eager_merge import relative
from tests.zoo import packed, pictures, videos
from tests.zoo.entries import alive, noise, positions
from toma_fx import TomaConfig, last_report
from toma_fx.order import curve_table, hilbert_order, order_from_positions, tile_order

WORDS, WINDOW = 10, 4
Inputs = dict[str, Any]
SMALL = {"regions": "all", "min_tokens": 1, "window": WINDOW, "inner_backend": "aot_eager"}


def output(run: Callable[..., Any], inputs: Inputs) -> Tensor:
    """What Z-Image gives is a list, a picture for each item."""
    found = run(**inputs, return_dict=False)[0]
    return torch.stack(found) if isinstance(found, list) else found


def compiled(model: nn.Module, inputs: Inputs, **options: Any) -> Tensor:
    torch._dynamo.reset()
    run = torch.compile(model, backend="toma", fullgraph=True, options={**SMALL, **options})
    return output(run, inputs)


def by_hand(
    model: nn.Module, inputs: Inputs, sequence: Tensor, size: int, **options: Any
) -> Tensor:
    with merged_by_hand(model, Runs(sequence, size, TomaConfig(**options))):
        return output(model, inputs)


def items(inputs: Inputs, batch: int) -> list[Inputs]:
    """The inputs of each item alone; what has no batch is for all."""

    def own(value: Any, item: int) -> Any:
        batched = isinstance(value, Tensor) and value.dim() and value.shape[0] == batch
        return value[item : item + 1] if batched else value

    return [{name: own(value, item) for name, value in inputs.items()} for item in range(batch)]


def check(
    model: nn.Module, inputs: Inputs, wanted: Tensor, attentions: int, **options: Any
) -> None:
    found = compiled(model, inputs, **options)
    report = last_report()
    assert sum(r.kind != "feed_forward" for r in report.merged) == attentions, str(report)
    assert all(r.status == "merged" or r.reason.startswith("text") for r in report.regions)
    assert relative(found, wanted) < 1e-4
    assert relative(found, output(model, inputs)) > 1e-3  # merging did happen


def wan(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    return alive(WanTransformer3DModel(**{**videos.WAN, **changes})).eval()


def wan_inputs(grid: tuple[int, int, int], batch: int) -> Inputs:
    frames, height, width = grid
    return {
        "hidden_states": noise(batch, 4, frames, 2 * height, 2 * width),
        "timestep": torch.full((batch,), 500.0),
        "encoder_hidden_states": noise(batch, WORDS, 20),
    }


GRIDS = [((3, 5, 7), 1), ((2, 7, 5), 2)]


@pytest.mark.parametrize(("grid", "batch"), GRIDS)
@torch.no_grad()
def test_wan(grid: tuple[int, int, int], batch: int) -> None:
    model, inputs = wan(), wan_inputs(grid, batch)
    wanted = by_hand(model, inputs, hilbert_order(grid), WINDOW**2)
    check(model, inputs, wanted, 4)


@torch.no_grad()
def test_wan_in_windows_of_several_frames() -> None:
    model = wan()
    for grid, window in (((4, 4, 8), (2, 4, 4)), ((3, 5, 6), (2, 3, 3))):
        inputs = wan_inputs(grid, 1)
        divides = all(side % part == 0 for side, part in zip(grid, window, strict=True))
        order = tile_order(grid, window) if divides else hilbert_order(grid, frames=True)
        wanted = by_hand(model, inputs, order, math.prod(window))
        check(model, inputs, wanted, 4, window=window)


@torch.no_grad()
def test_wan_with_a_timestep_for_each_token() -> None:
    """The frame that is given has another one: gates differ from token to token."""
    grid = (3, 5, 7)
    model, inputs = wan(), wan_inputs(grid, 1)
    timestep = torch.full((1, math.prod(grid)), 500.0)
    timestep[:, :35] = 0
    inputs["timestep"] = timestep
    check(model, inputs, by_hand(model, inputs, hilbert_order(grid), WINDOW**2), 4)


@pytest.mark.parametrize(("grid", "batch"), GRIDS)
@torch.no_grad()
def test_ltx(grid: tuple[int, int, int], batch: int) -> None:
    torch.manual_seed(0)
    model = alive(LTXVideoTransformer3DModel(**videos.LTX)).eval()
    mask = torch.ones(batch, WORDS)
    mask[-1, -3:] = 0
    inputs = {
        "hidden_states": noise(batch, math.prod(grid), 8),
        "encoder_hidden_states": noise(batch, WORDS, 20),
        "timestep": torch.full((batch,), 500.0),
        "encoder_attention_mask": mask,
        **dict(zip(("num_frames", "height", "width"), grid, strict=True)),
    }
    check(model, inputs, by_hand(model, inputs, hilbert_order(grid), WINDOW**2), 4)


@pytest.mark.parametrize(("grid", "batch"), [((1, 7, 11), 1), ((1, 9, 5), 2)])
@torch.no_grad()
def test_qwen_image(grid: tuple[int, int, int], batch: int) -> None:
    torch.manual_seed(0)
    model = alive(packed.qwen(QwenImageTransformer2DModel)).eval()
    mask = torch.ones(batch, WORDS, dtype=torch.bool)
    mask[0, -2:] = False
    inputs = {
        "hidden_states": noise(batch, math.prod(grid), 16),
        "encoder_hidden_states": noise(batch, WORDS, 20),
        "encoder_hidden_states_mask": mask,
        "timestep": torch.full((batch,), 0.5),
        "img_shapes": [[grid]] * batch,
    }
    order = hilbert_order(grid[1:])
    alone = [by_hand(model, item, order, WINDOW**2) for item in items(inputs, batch)]
    check(model, inputs, torch.cat(alone), 2)


@torch.no_grad()
def test_qwen_image_edit() -> None:
    """References stay at full length, and are modulated by a timestep of their own."""
    torch.manual_seed(0)
    model = alive(packed.qwen(QwenImageTransformer2DModel, zero_cond_t=True)).eval()
    inputs = {
        "hidden_states": noise(1, 77 + 32, 16),
        "encoder_hidden_states": noise(1, WORDS, 20),
        "timestep": torch.full((1,), 0.5),
        "img_shapes": [[(1, 7, 11), (1, 4, 8)]],
    }
    wanted = by_hand(model, inputs, hilbert_order((7, 11)), WINDOW**2)
    check(model, inputs, wanted, 2)
    assert {region.tokens for region in last_report().merged} == {77}


@pytest.mark.parametrize(("rows", "columns", "batch"), [(7, 11, 1), (9, 5, 2)])
@torch.no_grad()
def test_flux2(rows: int, columns: int, batch: int) -> None:
    torch.manual_seed(0)
    model = alive(packed.flux2(Flux2Transformer2DModel)[0]).eval()
    ids = positions(rows, columns, axes=4)
    inputs = {
        "hidden_states": noise(batch, rows * columns, 8),
        "encoder_hidden_states": noise(batch, WORDS, 20),
        "timestep": torch.full((batch,), 0.5),
        "guidance": torch.full((batch,), 4.0),
        "img_ids": ids.expand(batch, -1, -1),
        "txt_ids": torch.zeros(batch, WORDS, 4),
    }
    order = order_from_positions(ids, WINDOW, "tile", curve_table())
    alone = [by_hand(model, item, order, WINDOW**2) for item in items(inputs, batch)]
    check(model, inputs, torch.cat(alone), 4)


Z_IMAGES = [
    ((7, 11), [WORDS]),
    ((9, 5), [WORDS, WORDS]),
    ((8, 12), [WORDS, 2 * WORDS]),
    ((9, 7), [WORDS, 4 * WORDS]),  # 32 and 64 with their pads: the shorter item is masked
]


@pytest.mark.parametrize(("grid", "words"), Z_IMAGES)
@torch.no_grad()
def test_z_image(grid: tuple[int, int], words: list[int]) -> None:
    """The picture first, then its pads (19 of 96 tokens at 7 × 11), then the text and its own."""
    torch.manual_seed(0)
    model = alive(pictures.z_image(ZImageTransformer2DModel)[0]).eval()
    rows, columns = grid
    inputs = {
        "x": [noise(4, 1, 2 * rows, 2 * columns) for _ in words],
        "cap_feats": [noise(count, 20) for count in words],
        "t": torch.full((len(words),), 0.5),
    }
    tiles = rows % WINDOW == 0 and columns % WINDOW == 0
    order = tile_order(grid, WINDOW) if tiles else hilbert_order(grid)
    check(model, inputs, by_hand(model, inputs, order, WINDOW**2), 3)
    assert {region.tokens for region in last_report().merged} == {rows * columns}
