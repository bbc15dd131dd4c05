"""Arguments of a denoiser's call for a picture of some size: random numbers of the right shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from toma_fx.errors import ModelError

_TEXT = 77


def inputs_for(
    model: nn.Module, height: int, width: int, batch: int | None = None
) -> dict[str, Any]:
    """Keyword arguments of one denoising step.

    Args:
        model: a diffusers denoiser.
        height: of the picture in pixels.
        width: likewise.
        batch: items; None for what one picture needs (two where guidance doubles it).

    Raises:
        ModelError: the model takes no picture of this size, or nothing is known of its class.
    """
    name = type(model).__name__
    if name not in _BUILDERS:
        raise ModelError(f"no inputs are known for {name} (known: {', '.join(_BUILDERS)})")
    step, build = _BUILDERS[name]
    for side, size in (("height", height), ("width", width)):
        if size < step or size % step:
            raise ModelError(f"{name} takes a {side} that is a multiple of {step}, not {size}")
    with next(model.parameters()).device:
        return build(model, height, width, batch)


def _dtype(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


def _unet(model: Any, height: int, width: int, batch: int | None) -> dict[str, Any]:
    items, dtype, config = batch or 2, _dtype(model), model.config
    inputs: dict[str, Any] = {
        "sample": torch.randn(items, config.in_channels, height // 8, width // 8, dtype=dtype),
        "timestep": torch.tensor(500.0),
        "encoder_hidden_states": torch.randn(items, _TEXT, config.cross_attention_dim, dtype=dtype),
        "return_dict": False,
    }
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {
            "text_embeds": torch.randn(items, pooled, dtype=dtype),
            "time_ids": torch.ones(items, 6, dtype=dtype),
        }
    return inputs


def _flux(model: Any, height: int, width: int, batch: int | None) -> dict[str, Any]:
    items, dtype, config, text = batch or 1, _dtype(model), model.config, 512
    rows, columns = height // 16, width // 16
    inputs = {
        "hidden_states": torch.randn(items, rows * columns, config.in_channels, dtype=dtype),
        "encoder_hidden_states": torch.randn(items, text, config.joint_attention_dim, dtype=dtype),
        "pooled_projections": torch.randn(items, config.pooled_projection_dim, dtype=dtype),
        "timestep": torch.full((items,), 0.5, dtype=dtype),
        "img_ids": _positions(rows, columns),
        "txt_ids": torch.zeros(text, 3),
        "return_dict": False,
    }
    if config.guidance_embeds:
        inputs["guidance"] = torch.full((items,), 3.5)
    return inputs


def _positions(rows: int, columns: int) -> Tensor:
    """`img_ids` as the Flux pipeline makes them, `[rows · columns, 3]`."""
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
    return torch.cat((torch.zeros_like(places[:, :1]), places), 1)


def _sd3(model: Any, height: int, width: int, batch: int | None) -> dict[str, Any]:
    items, dtype, config = batch or 2, _dtype(model), model.config
    rows, columns = (side // 8 // config.patch_size for side in (height, width))
    if max(rows, columns) > config.pos_embed_max_size:
        largest = config.pos_embed_max_size * config.patch_size * 8
        raise ModelError(f"the position table ends at {largest} pixels a side")
    return {
        "hidden_states": torch.randn(
            items, config.in_channels, height // 8, width // 8, dtype=dtype
        ),
        "encoder_hidden_states": torch.randn(items, 333, config.joint_attention_dim, dtype=dtype),
        "pooled_projections": torch.randn(items, config.pooled_projection_dim, dtype=dtype),
        "timestep": torch.full((items,), 500.0),
        "return_dict": False,
    }


Builder = Callable[[Any, int, int, "int | None"], dict[str, Any]]
# The smallest step of a side in pixels: eight for the autoencoder, twice that where the model
# cuts patches of two.
_BUILDERS: dict[str, tuple[int, Builder]] = {
    "UNet2DConditionModel": (8, _unet),
    "FluxTransformer2DModel": (16, _flux),
    "SD3Transformer2DModel": (16, _sd3),
}
