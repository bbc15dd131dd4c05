"""Models of pictures that are packed before they come: tokens `[B, N, C]`."""

from __future__ import annotations

from typing import Any

import torch

from tests.zoo.entries import (
    AXES,
    COLUMNS,
    HEADED,
    HEADS,
    ROWS,
    TOKENS,
    WIDTH,
    WORDS,
    Made,
    entry,
    noise,
    positions,
)

BLOCKS = {"num_layers": 2, "num_single_layers": 2}
TIME = {"timestep": torch.full((1,), 0.5)}
SHAPE = (1, ROWS, COLUMNS)
REFERENCE = (1, 4, 8)
"""An edit's picture beside the one that is drawn."""


def given(text: int, channels: int = 8, axes: int = 3) -> dict[str, Any]:
    return {
        "hidden_states": noise(1, TOKENS, channels),
        "encoder_hidden_states": noise(1, WORDS, text),
        "timestep": torch.full((1,), 0.5),
        "img_ids": positions(axes=axes),
        "txt_ids": torch.zeros(WORDS, axes),
    }


@entry("transformer_flux", "FluxTransformer2DModel")
def flux(cls: Any) -> Made:
    model = cls(
        **HEADED,
        **BLOCKS,
        in_channels=8,
        joint_attention_dim=20,
        pooled_projection_dim=12,
        axes_dims_rope=AXES,
    )
    return model, {**given(20), "pooled_projections": noise(1, 12)}


@entry("transformer_flux", "FluxTransformer2DModel/kontext")
def kontext(cls: Any) -> Made:
    """The picture, then the one that is edited; its ids begin with 1."""
    model, inputs = flux(cls)
    ids = torch.cat((inputs["img_ids"], positions(4, 8, first=1)))
    return model, {**inputs, "hidden_states": noise(1, TOKENS + 32, 8), "img_ids": ids}


@entry("transformer_flux2", "Flux2Transformer2DModel")
def flux2(cls: Any) -> Made:
    model = cls(
        **HEADED,
        **BLOCKS,
        in_channels=8,
        joint_attention_dim=20,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
    )
    inputs = given(20, axes=4)
    ids = {name: inputs[name].unsqueeze(0) for name in ("img_ids", "txt_ids")}
    return model, {**inputs, **ids, "guidance": torch.full((1,), 4.0)}


@entry("transformer_flux2", "Flux2Transformer2DModel/edit")
def flux2_edit(cls: Any) -> Made:
    """The picture, then references; the first axis of their ids is 10, 20, …"""
    model, inputs = flux2(cls)
    reference = positions(4, 8, axes=4, first=10).unsqueeze(0)
    ids = torch.cat((inputs["img_ids"], reference), 1)
    return model, {**inputs, "hidden_states": noise(1, TOKENS + 32, 8), "img_ids": ids}


@entry("transformer_flux3", "Flux3Transformer2DModel")
def flux3(cls: Any) -> Made:
    model = cls(
        **HEADED,
        **BLOCKS,
        in_channels=8,
        cond_in_channels=8,
        joint_attention_dim=20,
        timestep_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
    )
    return model, given(20, axes=4)


@entry("transformer_bria", "BriaTransformer2DModel")
def bria(cls: Any) -> Made:
    model = cls(
        **HEADED, **BLOCKS, in_channels=8, joint_attention_dim=20, axes_dims_rope=list(AXES)
    )
    return model, given(20)


@entry("transformer_bria_fibo", "BriaFiboTransformer2DModel")
def bria_fibo(cls: Any) -> Made:
    model = cls(
        **HEADED,
        **BLOCKS,
        in_channels=8,
        joint_attention_dim=20,
        text_encoder_dim=12,
        axes_dims_rope=list(AXES),
    )
    layers = [noise(1, WORDS, 12) for _ in range(4)]
    return model, {**given(20), "text_encoder_layers": layers}


@entry("transformer_chroma", "ChromaTransformer2DModel")
def chroma(cls: Any) -> Made:
    model = cls(
        **HEADED,
        **BLOCKS,
        in_channels=8,
        joint_attention_dim=20,
        axes_dims_rope=AXES,
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    return model, given(20)


@entry("transformer_chroma", "ChromaTransformer2DModel/masked")
def chroma_masked(cls: Any) -> Made:
    """As its pipeline calls it: the prompt's padding is masked, but for one token."""
    model, inputs = chroma(cls)
    mask = torch.ones(1, WORDS + TOKENS, dtype=torch.bool)
    mask[:, WORDS - 3 : WORDS] = False
    return model, {**inputs, "attention_mask": mask}


@entry("transformer_longcat_image", "LongCatImageTransformer2DModel")
def longcat_image(cls: Any) -> Made:
    model = cls(
        **HEADED,
        **BLOCKS,
        in_channels=8,
        joint_attention_dim=20,
        pooled_projection_dim=20,
        axes_dims_rope=list(AXES),
    )
    return model, given(20)


@entry("transformer_ovis_image", "OvisImageTransformer2DModel")
def ovis_image(cls: Any) -> Made:
    model = cls(
        **HEADED,
        **BLOCKS,
        in_channels=8,
        out_channels=8,
        joint_attention_dim=20,
        axes_dims_rope=AXES,
    )
    return model, given(20)


@entry("transformer_krea2", "Krea2Transformer2DModel")
def krea2(cls: Any) -> Made:
    model = cls(
        **HEADED,
        in_channels=8,
        num_layers=2,
        num_key_value_heads=1,
        intermediate_size=48,
        timestep_embed_dim=16,
        text_hidden_dim=20,
        num_text_layers=2,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=24,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=AXES,
    )
    ids = torch.cat((torch.zeros(WORDS, 3), positions()))
    return model, {
        "hidden_states": noise(1, TOKENS, 8),
        "encoder_hidden_states": noise(1, WORDS, 2, 20),
        "timestep": torch.full((1,), 0.5),
        "position_ids": ids,
    }


def qwen(cls: Any, **changes: Any) -> Any:
    return cls(
        **HEADED,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        joint_attention_dim=20,
        axes_dims_rope=AXES,
        **changes,
    )


@entry("transformer_qwenimage", "QwenImageTransformer2DModel")
def qwen_image(cls: Any) -> Made:
    return qwen(cls), {
        "hidden_states": noise(1, TOKENS, 16),
        "encoder_hidden_states": noise(1, WORDS, 20),
        "timestep": torch.full((1,), 0.5),
        "img_shapes": [[SHAPE]],
    }


@entry("transformer_qwenimage", "QwenImageTransformer2DModel/masked")
def qwen_masked(cls: Any) -> Made:
    """Two prompts of different lengths."""
    mask = torch.ones(2, WORDS, dtype=torch.bool)
    mask[1, -4:] = False
    return qwen(cls), {
        "hidden_states": noise(2, TOKENS, 16),
        "encoder_hidden_states": noise(2, WORDS, 20),
        "encoder_hidden_states_mask": mask,
        "timestep": torch.full((2,), 0.5),
        "img_shapes": [[SHAPE]] * 2,
    }


@entry("transformer_qwenimage", "QwenImageTransformer2DModel/edit")
def qwen_edit(cls: Any) -> Made:
    """Edit 2511: references have a timestep of zero, so that modulation differs by token."""
    return qwen(cls, zero_cond_t=True), {
        "hidden_states": noise(1, TOKENS + 32, 16),
        "encoder_hidden_states": noise(1, WORDS, 20),
        "timestep": torch.full((1,), 0.5),
        "img_shapes": [[SHAPE, REFERENCE]],
    }


@entry(
    "transformer_qwenimage21",
    "QwenImage21Transformer2DModel",
    grid=(ROWS, COLUMNS),
    grid_start=WORDS,
)
def qwen_image21(cls: Any) -> Made:
    model = cls(
        **HEADED,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        context_in_dim=20,
        axes_dims_rope=AXES,
    )
    return model, {
        "hidden_states": noise(1, TOKENS, 16),
        "encoder_hidden_states": noise(1, WORDS, 20),
        "timestep": torch.full((1,), 0.5),
        "img_shapes": [[SHAPE]],
        "img_mask": torch.tensor([[False] * WORDS + [True] * (TOKENS // 4)]),
    }


@entry("transformer_nucleusmoe_image", "NucleusMoEImageTransformer2DModel")
def nucleus(cls: Any) -> Made:
    model = cls(
        **HEADED,
        in_channels=16,
        out_channels=4,
        num_layers=4,
        joint_attention_dim=20,
        axes_dims_rope=AXES,
        num_experts=2,
        moe_intermediate_dim=16,
        capacity_factors=1.0,
    )
    return model, {
        "hidden_states": noise(1, TOKENS, 16),
        "encoder_hidden_states": noise(1, WORDS, 20),
        "timestep": torch.full((1,), 0.5),
        "img_shapes": [SHAPE],
    }


@entry(
    "transformer_ideogram4", "Ideogram4Transformer2DModel", grid=(ROWS, COLUMNS), grid_start=WORDS
)
def ideogram(cls: Any) -> Made:
    model = cls(
        **HEADED,
        in_channels=8,
        num_layers=2,
        intermediate_size=48,
        adaln_dim=16,
        llm_features_dim=20,
        mrope_section=(4, 2, 2),
    )
    length = WORDS + TOKENS
    ids = torch.cat((torch.zeros(WORDS, 3), positions()))[None].long()
    roles = torch.tensor([3] * WORDS + [2] * TOKENS)[None]
    return model, {
        "hidden_states": noise(1, length, 8),
        "timestep": torch.full((1,), 0.5),
        "encoder_hidden_states": noise(1, length, 20),
        "position_ids": ids,
        "segment_ids": torch.zeros(1, length, dtype=torch.long),
        "indicator": roles,
    }


@entry("transformer_joyimage_edit_plus", "JoyImageEditPlusTransformer3DModel")
def joyimage_plus(cls: Any) -> Made:
    model = cls(
        in_channels=4,
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        text_dim=20,
        num_layers=2,
        rope_dim_list=list(AXES),
    )
    return model, {
        "hidden_states": noise(1, TOKENS + 32, 4, 1, 2, 2),
        "timestep": torch.full((1,), 500.0),
        "encoder_hidden_states": noise(1, WORDS, 20),
        "shape_list": [[SHAPE, REFERENCE]],
    }
