"""Arguments of transformers that are given pictures: random numbers of the right shapes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from toma_fx.cli.drawing import Drawing
from toma_fx.errors import ModelError

_TEXT = 512
"""Text tokens: the limit of the pipelines, and what those that pad give."""


def dtype_of(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


def flux(model: Any, drawing: Drawing) -> dict[str, Any]:
    """Flux.1 and Kontext: the picture that is edited follows the one that is drawn."""
    items, dtype, config = drawing.batch or 1, dtype_of(model), model.config
    ids = _positions(drawing, 3)
    inputs = {
        "hidden_states": torch.randn(items, len(ids), config.in_channels, dtype=dtype),
        "encoder_hidden_states": torch.randn(items, _TEXT, config.joint_attention_dim, dtype=dtype),
        "pooled_projections": torch.randn(items, config.pooled_projection_dim, dtype=dtype),
        "timestep": torch.full((items,), 0.5, dtype=dtype),
        "img_ids": ids,
        "txt_ids": torch.zeros(_TEXT, 3),
        "return_dict": False,
    }
    if config.guidance_embeds:
        inputs["guidance"] = torch.full((items,), 3.5)
    return inputs


def flux2(model: Any, drawing: Drawing) -> dict[str, Any]:
    items, dtype, config = drawing.batch or 1, dtype_of(model), model.config
    ids = _positions(drawing, 4).expand(items, -1, -1)
    inputs = {
        "hidden_states": torch.randn(items, ids.shape[1], config.in_channels, dtype=dtype),
        "encoder_hidden_states": torch.randn(items, _TEXT, config.joint_attention_dim, dtype=dtype),
        "timestep": torch.full((items,), 0.5, dtype=dtype),
        "img_ids": ids,
        "txt_ids": torch.zeros(items, _TEXT, 4),
        "return_dict": False,
    }
    if config.guidance_embeds:
        inputs["guidance"] = torch.full((items,), 4.0)
    return inputs


def chroma(model: Any, drawing: Drawing) -> dict[str, Any]:
    """The prompt's padding is masked, so that a mask comes with it."""
    items, dtype, config = drawing.batch or 1, dtype_of(model), model.config
    ids = _positions(drawing, 3)
    return {
        "hidden_states": torch.randn(items, len(ids), config.in_channels, dtype=dtype),
        "encoder_hidden_states": torch.randn(items, _TEXT, config.joint_attention_dim, dtype=dtype),
        "timestep": torch.full((items,), 0.5, dtype=dtype),
        "img_ids": ids,
        "txt_ids": torch.zeros(_TEXT, 3),
        "attention_mask": torch.ones(items, _TEXT + len(ids), dtype=torch.bool),
        "return_dict": False,
    }


def qwen_image(model: Any, drawing: Drawing) -> dict[str, Any]:
    """Guidance is a call of its own; the grids of all pictures are a Python argument."""
    items, dtype, config = drawing.batch or 1, dtype_of(model), model.config
    rows, columns = drawing.height // 16, drawing.width // 16
    pictures = 1 + drawing.references
    return {
        "hidden_states": torch.randn(
            items, pictures * rows * columns, config.in_channels, dtype=dtype
        ),
        "encoder_hidden_states": torch.randn(items, _TEXT, config.joint_attention_dim, dtype=dtype),
        "timestep": torch.full((items,), 0.5, dtype=dtype),
        "img_shapes": [[(1, rows, columns)] * pictures] * items,
        "return_dict": False,
    }


def z_image(model: Any, drawing: Drawing) -> dict[str, Any]:
    """Pictures and prompts are lists, an item each."""
    items, dtype, config = drawing.batch or 1, dtype_of(model), model.config
    sides = (config.in_channels, 1, drawing.height // 8, drawing.width // 8)
    # It makes its tables at the first call, by a graph break, and keeps them.
    model.rope_embedder(torch.zeros(1, 3, dtype=torch.int32))
    return {
        "x": [torch.randn(sides, dtype=dtype) for _ in range(items)],
        "t": torch.full((items,), 0.5),
        "cap_feats": [torch.randn(_TEXT, config.cap_feat_dim, dtype=dtype) for _ in range(items)],
        "return_dict": False,
    }


def sd3(model: Any, drawing: Drawing) -> dict[str, Any]:
    items, dtype, config = drawing.batch or 2, dtype_of(model), model.config
    rows, columns = (side // 8 // config.patch_size for side in (drawing.height, drawing.width))
    if max(rows, columns) > config.pos_embed_max_size:
        largest = config.pos_embed_max_size * config.patch_size * 8
        raise ModelError(f"the position table ends at {largest} pixels a side")
    return {
        "hidden_states": torch.randn(
            items, config.in_channels, drawing.height // 8, drawing.width // 8, dtype=dtype
        ),
        "encoder_hidden_states": torch.randn(items, 333, config.joint_attention_dim, dtype=dtype),
        "pooled_projections": torch.randn(items, config.pooled_projection_dim, dtype=dtype),
        "timestep": torch.full((items,), 500.0),
        "return_dict": False,
    }


def _positions(drawing: Drawing, axes: int) -> Tensor:
    """`[pictures · rows · columns, axes]` as the Flux pipelines make them.

    Row and column are columns 1 and 2; column 0 tells the pictures apart.
    """
    rows, columns = drawing.height // 16, drawing.width // 16
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
    behind = places.new_zeros(len(places), axes - 3)
    pictures = [
        torch.cat((torch.full_like(places[:, :1], picture), places, behind), 1)
        for picture in range(1 + drawing.references)
    ]
    return torch.cat(pictures)
