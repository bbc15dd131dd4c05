"""Configurations of the models that people run now, as they were published.

Each is what the conversion script of its authors or of diffusers writes; what is not named is the
default of the diffusers class, which is the largest release of its kind.
"""

from __future__ import annotations

from typing import Any

_WAN_HEADS = {"attention_head_dim": 128, "freq_dim": 256, "text_dim": 4096}

# diffusers, scripts/convert_wan_to_diffusers.py: Wan-T2V-1.3B, Wan2.2-T2V-A14B, Wan2.2-TI2V-5B.
# A14B is two transformers of one configuration: one for the first steps, one for the last.
WAN21_1_3B: dict[str, Any] = {
    **_WAN_HEADS,
    "num_attention_heads": 12,
    "num_layers": 30,
    "ffn_dim": 8960,
    "in_channels": 16,
    "out_channels": 16,
}
WAN22_A14B: dict[str, Any] = {
    **_WAN_HEADS,
    "num_attention_heads": 40,
    "num_layers": 40,
    "ffn_dim": 13824,
    "in_channels": 16,
    "out_channels": 16,
}
WAN22_TI2V_5B: dict[str, Any] = {
    **_WAN_HEADS,
    "num_attention_heads": 24,
    "num_layers": 30,
    "ffn_dim": 14336,
    "in_channels": 48,
    "out_channels": 48,
}
# diffusers, scripts/convert_ltx2_to_diffusers.py, version 2.0.
LTX2: dict[str, Any] = {
    "in_channels": 128,
    "out_channels": 128,
    "num_attention_heads": 32,
    "attention_head_dim": 128,
    "cross_attention_dim": 4096,
    "audio_in_channels": 128,
    "audio_out_channels": 128,
    "audio_num_attention_heads": 32,
    "audio_attention_head_dim": 64,
    "audio_cross_attention_dim": 2048,
    "num_layers": 48,
    "caption_channels": 3840,
    "rope_type": "split",
}
# diffusers, scripts/convert_hunyuan_video1_5_to_diffusers.py: 720p_t2v, on the class's defaults.
HUNYUAN_VIDEO_15: dict[str, Any] = {
    "in_channels": 65,
    "out_channels": 32,
    "num_attention_heads": 16,
    "attention_head_dim": 128,
    "num_layers": 54,
    "target_size": 960,
    "task_type": "t2v",
}
# The transformer's config.json of THUDM/CogVideoX-5b.
COGVIDEOX_5B: dict[str, Any] = {
    "num_attention_heads": 48,
    "attention_head_dim": 64,
    "num_layers": 42,
    "in_channels": 16,
    "out_channels": 16,
    "text_embed_dim": 4096,
    "sample_frames": 49,
    "use_rotary_positional_embeddings": True,
}
# The transformer's config.json of Qwen/Qwen-Image; that of Qwen-Image-Edit-2511 has one field more,
# a timestep of zero for the pictures that are edited.
QWEN_IMAGE: dict[str, Any] = {
    "num_layers": 60,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "in_channels": 64,
    "out_channels": 16,
    "joint_attention_dim": 3584,
}
QWEN_IMAGE_EDIT: dict[str, Any] = {**QWEN_IMAGE, "zero_cond_t": True}
# The defaults of diffusers' ZImageTransformer2DModel, written for Tongyi-MAI/Z-Image-Turbo.
Z_IMAGE_TURBO: dict[str, Any] = {
    "dim": 3840,
    "n_layers": 30,
    "n_refiner_layers": 2,
    "n_heads": 30,
    "n_kv_heads": 30,
    "cap_feat_dim": 2560,
}
# diffusers, scripts/convert_flux2_to_diffusers.py: flux2-dev and klein-4b.
FLUX2_DEV: dict[str, Any] = {
    "num_layers": 8,
    "num_single_layers": 48,
    "num_attention_heads": 48,
    "joint_attention_dim": 15360,
}
FLUX2_KLEIN: dict[str, Any] = {
    "num_layers": 5,
    "num_single_layers": 20,
    "num_attention_heads": 24,
    "joint_attention_dim": 7680,
    "guidance_embeds": False,
}
# That of FLUX.1-dev; what is new is in the weights and in the tokens it is given.
KONTEXT: dict[str, Any] = {"guidance_embeds": True}
# The defaults of diffusers' ChromaTransformer2DModel, written for lodestones/Chroma.
CHROMA: dict[str, Any] = {"num_layers": 19, "num_single_layers": 38, "approximator_layers": 5}
