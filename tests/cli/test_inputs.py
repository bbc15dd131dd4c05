"""Small models of every class that inputs are known for take them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from toma_fx.cli.inputs import inputs_for
from toma_fx.cli.presets import Preset, build
from toma_fx.errors import ModelError

HEADED = {"num_attention_heads": 2, "attention_head_dim": 16}
ROTARY = {"axes_dims_rope": (4, 6, 6)}
SMALL: dict[str, dict[str, Any]] = {
    "ChromaTransformer2DModel": {
        **HEADED,
        **ROTARY,
        "in_channels": 8,
        "num_layers": 1,
        "num_single_layers": 1,
        "joint_attention_dim": 20,
        "approximator_num_channels": 8,
        "approximator_hidden_dim": 16,
        "approximator_layers": 1,
    },
    "CogVideoXTransformer3DModel": {
        **HEADED,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 1,
        "text_embed_dim": 20,
        "time_embed_dim": 16,
        "use_rotary_positional_embeddings": True,
    },
    "Flux2Transformer2DModel": {
        **HEADED,
        "axes_dims_rope": (4, 4, 4, 4),
        "in_channels": 8,
        "num_layers": 1,
        "num_single_layers": 1,
        "joint_attention_dim": 20,
        "timestep_guidance_channels": 16,
    },
    "FluxTransformer2DModel": {
        **HEADED,
        **ROTARY,
        "in_channels": 8,
        "num_layers": 1,
        "num_single_layers": 1,
        "joint_attention_dim": 20,
        "pooled_projection_dim": 12,
    },
    "HunyuanVideo15Transformer3DModel": {
        **HEADED,
        "rope_axes_dim": (4, 6, 6),
        "in_channels": 9,
        "out_channels": 4,
        "num_layers": 1,
        "num_refiner_layers": 1,
        "text_embed_dim": 20,
        "text_embed_2_dim": 12,
        "image_embed_dim": 8,
        "task_type": "t2v",
    },
    "LTX2VideoTransformer3DModel": {
        **HEADED,
        "in_channels": 8,
        "out_channels": 8,
        "num_layers": 1,
        "cross_attention_dim": 32,
        "caption_channels": 20,
        "audio_in_channels": 6,
        "audio_out_channels": 6,
        "audio_num_attention_heads": 2,
        "audio_attention_head_dim": 8,
        "audio_cross_attention_dim": 16,
        "rope_type": "split",
    },
    "QwenImageTransformer2DModel": {
        **HEADED,
        **ROTARY,
        "in_channels": 16,
        "out_channels": 4,
        "num_layers": 1,
        "joint_attention_dim": 20,
        "zero_cond_t": True,
    },
    "WanTransformer3DModel": {
        **HEADED,
        "in_channels": 48,
        "out_channels": 48,
        "text_dim": 20,
        "freq_dim": 16,
        "ffn_dim": 48,
        "num_layers": 1,
    },
    "ZImageTransformer2DModel": {
        "in_channels": 4,
        "dim": 32,
        "n_layers": 1,
        "n_refiner_layers": 1,
        "n_heads": 2,
        "n_kv_heads": 2,
        "cap_feat_dim": 20,
        "axes_dims": [4, 6, 6],
    },
}
FRAMES = {
    "CogVideoXTransformer3DModel": 5,
    "HunyuanVideo15Transformer3DModel": 5,
    "LTX2VideoTransformer3DModel": 9,
    "WanTransformer3DModel": 5,
}
EDITS = ("Flux2Transformer2DModel", "FluxTransformer2DModel", "QwenImageTransformer2DModel")


def small(name: str) -> torch.nn.Module:
    return build(Preset(name, name, SMALL[name]), torch.device("cpu"), torch.float32)


@torch.no_grad()
@pytest.mark.parametrize("name", list(SMALL))
def test_a_call_takes_them(name: str) -> None:
    model = small(name)
    inputs = inputs_for(model, 64, 96, frames=FRAMES.get(name))
    found = model(**inputs)[0]
    wanted = inputs["x"] if "x" in inputs else inputs["hidden_states"]
    if isinstance(wanted, list):
        found, wanted = torch.stack(found), torch.stack(wanted)
    channels = 2 if name.startswith("Cog") or wanted.dim() == 3 else 1
    assert _without(found, channels) == _without(wanted, channels)


def _without(tensor: torch.Tensor, axis: int) -> list[int]:
    sizes = list(tensor.shape)
    return sizes[:axis] + sizes[axis + 1 :]


@torch.no_grad()
@pytest.mark.parametrize("name", EDITS)
def test_pictures_that_are_edited_come_along(name: str) -> None:
    model = small(name)
    alone, edited = (inputs_for(model, 64, 96, references=count) for count in (0, 2))
    tokens = [inputs["hidden_states"].shape[1] for inputs in (alone, edited)]
    assert tokens == [24, 72]
    assert model(**edited)[0].shape[1] in (24, 72)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("FluxTransformer2DModel", {"frames": 5}, "draws pictures, not 5 frames"),
        ("WanTransformer3DModel", {"frames": 6}, "1 \\+ a multiple of 4 frames, not 6"),
        ("WanTransformer3DModel", {"references": 1}, "edits no pictures"),
    ],
)
def test_what_a_class_cannot_draw(name: str, options: dict[str, int], reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        inputs_for(small(name), 64, 96, **options)
