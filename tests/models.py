"""Small models in the architectures of diffusion pipelines, and inputs for them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from torch import Tensor


def sdxl(**changes: Any) -> UNet2DConditionModel:
    """SDXL's layout: no attention at the top level, text-time conditioning."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 1),
        "attention_head_dim": (2, 4),
        "cross_attention_dim": 48,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 8 * 6 + 32,
        "use_linear_projection": True,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**{**settings, **changes}).eval()


def full_sdxl() -> UNet2DConditionModel:
    """SDXL-base's configuration; build it on the meta device."""
    return sdxl(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
        norm_num_groups=32,
    )


def sdxl_inputs(
    model: UNet2DConditionModel, height: int, width: int, batch: int = 2, timestep: float = 500.0
) -> dict[str, Any]:
    """Latents of `height × width`; the attention sees half of each side."""
    cross = model.config.cross_attention_dim
    pooled = model.config.projection_class_embeddings_input_dim
    pooled -= 6 * model.config.addition_time_embed_dim
    dtype = next(model.parameters()).dtype
    conditions = {
        "text_embeds": torch.randn(batch, pooled, dtype=dtype),
        "time_ids": torch.randn(batch, 6),
    }
    return {
        "sample": torch.randn(batch, 4, height, width, dtype=dtype),
        "timestep": torch.tensor(timestep),
        "encoder_hidden_states": torch.randn(batch, 77, cross, dtype=dtype),
        "added_cond_kwargs": conditions,
        "return_dict": False,
    }


def flux(**changes: Any) -> FluxTransformer2DModel:
    """Flux.1-dev's layout: joint and single blocks, rotary positions, guidance."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 4,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 32,
        "axes_dims_rope": (4, 6, 6),
        "guidance_embeds": True,
    }
    return FluxTransformer2DModel(**{**settings, **changes}).eval()


def full_flux() -> FluxTransformer2DModel:
    """Flux.1-dev's configuration; build it on the meta device."""
    return FluxTransformer2DModel(guidance_embeds=True).eval()


def positions(height: int, width: int) -> Tensor:
    """`img_ids` as the Flux pipeline makes them, `[height · width, 3]`."""
    ids = torch.zeros(height, width, 3)
    ids[..., 1] += torch.arange(height)[:, None]
    ids[..., 2] += torch.arange(width)[None]
    return ids.view(-1, 3)


def flux_inputs(
    model: FluxTransformer2DModel, height: int, width: int, text: int = 32, batch: int = 1
) -> dict[str, Any]:
    config = model.config
    dtype = next(model.parameters()).dtype
    return {
        "hidden_states": torch.randn(batch, height * width, config.in_channels, dtype=dtype),
        "encoder_hidden_states": torch.randn(batch, text, config.joint_attention_dim, dtype=dtype),
        "pooled_projections": torch.randn(batch, config.pooled_projection_dim, dtype=dtype),
        "timestep": torch.full((batch,), 0.5, dtype=dtype),
        "img_ids": positions(height, width),
        "txt_ids": torch.zeros(text, 3),
        "guidance": torch.full((batch,), 3.5),
        "return_dict": False,
    }


def stable_diffusion(**changes: Any) -> UNet2DConditionModel:
    """Stable Diffusion 1.5's layout: attention at the top level, projections by convolution."""
    return sdxl(
        **{
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "transformer_layers_per_block": 1,
            "attention_head_dim": 4,
            "addition_embed_type": None,
            "projection_class_embeddings_input_dim": None,
            "addition_time_embed_dim": None,
            "use_linear_projection": False,
            **changes,
        }
    )


def stable_diffusion_inputs(
    model: UNet2DConditionModel, height: int, width: int, batch: int = 2
) -> dict[str, Any]:
    return {
        "sample": torch.randn(batch, 4, height, width),
        "timestep": torch.tensor(500.0),
        "encoder_hidden_states": torch.randn(batch, 77, model.config.cross_attention_dim),
        "return_dict": False,
    }


def sd3(**changes: Any) -> SD3Transformer2DModel:
    """Stable Diffusion 3.5's layout; `dual_attention_layers=(0, 1)` is that of the medium model."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "sample_size": 32,
        "patch_size": 2,
        "in_channels": 4,
        "num_layers": 3,
        "attention_head_dim": 16,
        "num_attention_heads": 4,
        "joint_attention_dim": 32,
        "caption_projection_dim": 64,
        "pooled_projection_dim": 32,
        "out_channels": 4,
        "pos_embed_max_size": 48,
        "qk_norm": "rms_norm",
    }
    return SD3Transformer2DModel(**{**settings, **changes}).eval()


def sd3_inputs(
    model: SD3Transformer2DModel, height: int, width: int, batch: int = 2
) -> dict[str, Any]:
    """Latents of `height × width`; a token is a patch of 2 × 2."""
    config = model.config
    return {
        "hidden_states": torch.randn(batch, config.in_channels, height, width),
        "encoder_hidden_states": torch.randn(batch, 20, config.joint_attention_dim),
        "pooled_projections": torch.randn(batch, config.pooled_projection_dim),
        "timestep": torch.full((batch,), 500.0),
        "return_dict": False,
    }
