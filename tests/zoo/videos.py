"""Models of videos."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from tests.zoo.entries import (
    AXES,
    COLUMNS,
    FRAMES,
    HEAD,
    HEADED,
    HEADS,
    ROWS,
    TOKENS,
    WIDTH,
    WORDS,
    Made,
    entry,
    noise,
    rotary,
)

GRID = (FRAMES, ROWS, COLUMNS)


def latents(channels: int = 4, patch: int = 2, batch: int = 1, frames: int = FRAMES) -> Any:
    return noise(batch, channels, frames, ROWS * patch, COLUMNS * patch)


def steps(batch: int = 1) -> torch.Tensor:
    return torch.full((batch,), 500.0)


WAN = {
    **HEADED,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 20,
    "freq_dim": 16,
    "ffn_dim": 48,
    "num_layers": 2,
    "rope_max_seq_len": 64,
}


def wan_inputs(channels: int = 4, batch: int = 1) -> dict[str, Any]:
    return {
        "hidden_states": latents(channels, batch=batch),
        "timestep": steps(batch),
        "encoder_hidden_states": noise(batch, WORDS, 20),
    }


@entry("transformer_wan", "WanTransformer3DModel")
def wan(cls: Any) -> Made:
    return cls(**WAN), wan_inputs(batch=2)


@entry("transformer_wan", "WanTransformer3DModel/ti2v")
def wan_ti2v(cls: Any) -> Made:
    """A timestep for each token: the first frame is given, so that its own is zero."""
    inputs = wan_inputs()
    timestep = torch.full((1, FRAMES * TOKENS), 500.0)
    timestep[:, :TOKENS] = 0
    return cls(**WAN), {**inputs, "timestep": timestep}


@entry("transformer_wan", "WanTransformer3DModel/i2v")
def wan_i2v(cls: Any) -> Made:
    """Wan 2.1's: the picture's features are a second text."""
    model = cls(**WAN, image_dim=12, added_kv_proj_dim=WIDTH)
    return model, {**wan_inputs(), "encoder_hidden_states_image": noise(1, 7, 12)}


@entry("transformer_wan_vace", "WanVACETransformer3DModel")
def wan_vace(cls: Any) -> Made:
    model = cls(**{**WAN, "num_layers": 3}, vace_layers=[0, 2], vace_in_channels=6)
    return model, {
        **wan_inputs(),
        "control_hidden_states": latents(6),
        "control_hidden_states_scale": torch.ones(2),
    }


@entry("transformer_wan_animate", "WanAnimateTransformer3DModel")
def wan_animate(cls: Any) -> Made:
    model = cls(
        **{**WAN, "in_channels": 12},
        latent_channels=4,
        image_dim=12,
        added_kv_proj_dim=WIDTH,
        motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8},
        motion_encoder_size=16,
        motion_style_dim=8,
        motion_dim=4,
        motion_encoder_dim=8,
        face_encoder_hidden_dim=8,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=2,
    )
    return model, {
        **wan_inputs(12),
        "hidden_states": latents(12, frames=FRAMES + 1),
        "encoder_hidden_states_image": noise(1, 7, 12),
        "pose_hidden_states": latents(4),
        "face_pixel_values": noise(1, 3, 9, 16, 16),
    }


@entry("transformer_wan_animate_2", "WanAnimate2Transformer3DModel")
def wan_animate2(cls: Any) -> Made:
    """The pass over the references, which fills the cache of keys."""
    module = importlib.import_module(cls.__module__)
    model = cls(
        text_len=WORDS,
        in_dim=8,
        dim=WIDTH,
        ffn_dim=48,
        freq_dim=16,
        text_dim=20,
        out_dim=4,
        num_heads=HEADS,
        num_layers=2,
        use_img_emb=False,
    )
    sides = (FRAMES, ROWS * 2, COLUMNS * 2)
    return model, {
        "hidden_states": [noise(4, *sides)],
        "timestep": steps(),
        "encoder_hidden_states": [noise(WORDS, 20)],
        "condition_latents": [noise(4, *sides)],
        "kv_cache": module.WanAnimate2KVCache(2),
        "kv_cache_mode": "extract",
        "seq_len": FRAMES * TOKENS,
        "offset_grid_sizes": torch.tensor([[FRAMES, ROWS, COLUMNS]]),
    }


@entry("transformer_chronoedit", "ChronoEditTransformer3DModel")
def chronoedit(cls: Any) -> Made:
    model = cls(**WAN, image_dim=12, added_kv_proj_dim=WIDTH, rope_temporal_skip_len=FRAMES)
    return model, {**wan_inputs(), "encoder_hidden_states_image": noise(1, 7, 12)}


@entry("transformer_skyreels_v2", "SkyReelsV2Transformer3DModel")
def skyreels(cls: Any) -> Made:
    return cls(**WAN), wan_inputs()


@entry("transformer_skyreels_v2", "SkyReelsV2Transformer3DModel/forcing")
def skyreels_forcing(cls: Any) -> Made:
    """Diffusion forcing: every frame has a timestep, and sees those before it."""
    model = cls(**WAN, inject_sample_info=True)
    return model, {
        **wan_inputs(),
        "timestep": torch.full((1, FRAMES), 500.0),
        "enable_diffusion_forcing": True,
        "fps": torch.tensor([0]),
    }


@entry("transformer_anyflow", "AnyFlowTransformer3DModel")
def anyflow(cls: Any) -> Made:
    inputs = wan_inputs()
    inputs["hidden_states"] = noise(1, FRAMES, 4, ROWS * 2, COLUMNS * 2)
    inputs["timestep"] = torch.full((1, FRAMES), 500.0)
    return cls(**WAN), {**inputs, "r_timestep": torch.full((1, FRAMES), 400.0)}


@entry("transformer_anyflow_far", "AnyFlowFARTransformer3DModel")
def anyflow_far(cls: Any) -> Made:
    inputs = wan_inputs()
    inputs["hidden_states"] = noise(1, FRAMES, 4, ROWS * 2, COLUMNS * 2)
    inputs["timestep"] = torch.full((1, FRAMES), 500.0)
    model = cls(**WAN, chunk_partition=(1, 2))
    return model, {
        **inputs,
        "r_timestep": torch.full((1, FRAMES), 400.0),
        "chunk_partition": [1, 2],
    }


@entry("transformer_helios", "HeliosTransformer3DModel")
def helios(cls: Any) -> Made:
    model = cls(
        **{name: value for name, value in WAN.items() if name != "rope_max_seq_len"}, rope_dim=AXES
    )
    sides = (ROWS * 2, COLUMNS * 2)
    return model, {
        **wan_inputs(),
        "indices_hidden_states": torch.arange(7, 7 + FRAMES)[None],
        "indices_latents_history_short": torch.arange(5, 7)[None],
        "indices_latents_history_mid": torch.arange(3, 5)[None],
        "indices_latents_history_long": torch.arange(0, 4)[None],
        "latents_history_short": noise(1, 4, 2, *sides),
        "latents_history_mid": noise(1, 4, 2, *sides),
        "latents_history_long": noise(1, 4, 4, *sides),
    }


@entry("latte_transformer_3d", "LatteTransformer3DModel")
def latte(cls: Any) -> Made:
    model = cls(
        **HEADED,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        cross_attention_dim=WIDTH,
        attention_bias=True,
        sample_size=24,
        patch_size=2,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        caption_channels=20,
        video_length=FRAMES,
    )
    return model, {
        "hidden_states": noise(1, 4, FRAMES, 24, 24),
        "timestep": steps(),
        "encoder_hidden_states": noise(1, WORDS, 20),
        "enable_temporal_attentions": True,
    }


COGVIDEO = {
    **HEADED,
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 16,
    "text_embed_dim": 20,
    "num_layers": 2,
    "sample_width": COLUMNS * 2,
    "sample_height": ROWS * 2,
    "sample_frames": 4 * (FRAMES - 1) + 1,
    "max_text_seq_length": WORDS,
}


@entry("cogvideox_transformer_3d", "CogVideoXTransformer3DModel")
def cogvideo(cls: Any) -> Made:
    """The 2B model: positions are added once."""
    return cls(**COGVIDEO), {
        "hidden_states": noise(1, FRAMES, 4, ROWS * 2, COLUMNS * 2),
        "encoder_hidden_states": noise(1, WORDS, 20),
        "timestep": steps(),
    }


@entry("cogvideox_transformer_3d", "CogVideoXTransformer3DModel/rotary")
def cogvideo_rotary(cls: Any) -> Made:
    """The 5B model."""
    model = cls(**COGVIDEO, use_rotary_positional_embeddings=True)
    return model, {
        "hidden_states": noise(1, FRAMES, 4, ROWS * 2, COLUMNS * 2),
        "encoder_hidden_states": noise(1, WORDS, 20),
        "timestep": steps(),
        "image_rotary_emb": rotary(FRAMES * TOKENS),
    }


@entry("consisid_transformer_3d", "ConsisIDTransformer3DModel")
def consisid(cls: Any) -> Made:
    model = cls(
        **COGVIDEO,
        use_rotary_positional_embeddings=True,
        is_train_face=True,
        cross_attn_interval=1,
        cross_attn_dim_head=8,
        cross_attn_num_heads=2,
        LFE_id_dim=8,
        LFE_vit_dim=16,
        LFE_depth=5,
        LFE_dim_head=8,
        LFE_num_heads=2,
        LFE_num_id_token=2,
        LFE_num_querie=4,
        LFE_output_dim=21,
        LFE_ff_mult=1,
    )
    return model, {
        "hidden_states": noise(1, FRAMES, 4, ROWS * 2, COLUMNS * 2),
        "encoder_hidden_states": noise(1, WORDS, 20),
        "timestep": steps(),
        "image_rotary_emb": rotary(FRAMES * TOKENS),
        "id_cond": noise(1, 8),
        "id_vit_hidden": [noise(1, 4, 16) for _ in range(5)],
    }


@entry("transformer_allegro", "AllegroTransformer3DModel")
def allegro(cls: Any) -> Made:
    model = cls(
        num_attention_heads=HEADS,
        attention_head_dim=24,
        num_layers=2,
        cross_attention_dim=HEADS * 24,
        sample_height=ROWS * 2,
        sample_width=COLUMNS * 2,
        sample_frames=FRAMES,
        caption_channels=20,
    )
    grids = torch.stack(
        torch.meshgrid(torch.arange(FRAMES), torch.arange(ROWS), torch.arange(COLUMNS))
    ).reshape(3, -1)
    tables = [torch.rand(side, 8) * 6 for side in (FRAMES, ROWS, COLUMNS)]
    freqs = tuple((table.cos(), table.sin()) for table in tables)
    return model, {
        "hidden_states": latents(),
        "encoder_hidden_states": noise(1, 1, WORDS, 20),
        "timestep": steps(),
        "attention_mask": torch.ones(1, FRAMES, ROWS * 2, COLUMNS * 2),
        "encoder_attention_mask": torch.ones(1, 1, WORDS),
        "image_rotary_emb": (freqs, tuple(grid[None] for grid in grids)),
    }


@entry("transformer_cosmos", "CosmosTransformer3DModel")
def cosmos(cls: Any) -> Made:
    model = cls(
        **HEADED,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        mlp_ratio=2.0,
        text_embed_dim=20,
        adaln_lora_dim=8,
        max_size=(4, 32, 32),
        concat_padding_mask=False,  # it is resized by torchvision, which is not needed otherwise
    )
    return model, {
        "hidden_states": latents(),
        "timestep": steps(),
        "encoder_hidden_states": noise(1, WORDS, 20),
        "attention_mask": torch.ones(1, WORDS),
        "fps": 24,
    }


@entry("transformer_cosmos3", "Cosmos3OmniTransformer")
def cosmos3(cls: Any) -> Made:
    model = cls(
        head_dim=HEAD,
        hidden_size=WIDTH,
        intermediate_size=48,
        latent_channel=4,
        num_attention_heads=HEADS,
        num_hidden_layers=2,
        num_key_value_heads=1,
        patch_latent_dim=16,
        vocab_size=64,
        rope_axes_dim=(2, 3, 3),
    )
    grid = FRAMES * TOKENS
    length = WORDS + grid
    ids = torch.zeros(3, length, dtype=torch.long)
    ids[:, :WORDS] = torch.arange(WORDS)
    sides = torch.meshgrid(torch.arange(FRAMES), torch.arange(ROWS), torch.arange(COLUMNS))
    ids[:, WORDS:] = torch.stack(sides).reshape(3, -1) + WORDS
    at = torch.arange(WORDS, length)
    return model, {
        "input_ids": torch.randint(0, 60, (WORDS,)),
        "text_indexes": torch.arange(WORDS),
        "position_ids": ids,
        "und_len": WORDS,
        "sequence_length": length,
        "vision_tokens": [latents()],
        "vision_token_shapes": [(FRAMES, ROWS, COLUMNS)],
        "vision_sequence_indexes": at,
        "vision_mse_loss_indexes": at,
        "vision_timesteps": torch.full((grid,), 500.0),
        "vision_noisy_frame_indexes": [torch.arange(FRAMES)],
    }


@entry("transformer_easyanimate", "EasyAnimateTransformer3DModel")
def easyanimate(cls: Any) -> Made:
    model = cls(
        **HEADED,
        in_channels=4,
        out_channels=4,
        patch_size=2,
        sample_width=COLUMNS * 2,
        sample_height=ROWS * 2,
        num_layers=2,
        mmdit_layers=1,
        time_embed_dim=16,
        text_embed_dim=20,
    )
    return model, {
        "hidden_states": latents(),
        "timestep": steps(),
        "encoder_hidden_states": noise(1, WORDS, 20),
    }


HUNYUAN = {
    **HEADED,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "num_single_layers": 2,
    "num_refiner_layers": 1,
    "text_embed_dim": 20,
    "pooled_projection_dim": 12,
    "rope_axes_dim": AXES,
}


def hunyuan_inputs(batch: int = 1) -> dict[str, Any]:
    mask = torch.ones(batch, WORDS)
    mask[:, -3:] = 0
    return {
        "hidden_states": latents(batch=batch),
        "timestep": steps(batch),
        "encoder_hidden_states": noise(batch, WORDS, 20),
        "encoder_attention_mask": mask,
        "pooled_projections": noise(batch, 12),
        "guidance": torch.full((batch,), 6000.0),
    }


@entry("transformer_hunyuan_video", "HunyuanVideoTransformer3DModel")
def hunyuan_video(cls: Any) -> Made:
    return cls(**HUNYUAN), hunyuan_inputs()


@entry(
    "transformer_hunyuan_video_framepack",
    "HunyuanVideoFramepackTransformer3DModel",
    grid=GRID,
    grid_start=222,
)
def framepack(cls: Any) -> Made:
    model = cls(**HUNYUAN, has_image_proj=True, image_proj_dim=8, has_clean_x_embedder=True)
    sides = (ROWS * 2, COLUMNS * 2)
    return model, {
        **hunyuan_inputs(),
        "image_embeds": noise(1, 7, 8),
        "indices_latents": torch.arange(FRAMES),
        "latents_clean": noise(1, 4, 2, *sides),
        "indices_latents_clean": torch.arange(2),
        "latents_history_2x": noise(1, 4, 2, *sides),
        "indices_latents_history_2x": torch.arange(2),
        "latents_history_4x": noise(1, 4, 4, *sides),
        "indices_latents_history_4x": torch.arange(4),
    }


@entry("transformer_hunyuan_video15", "HunyuanVideo15Transformer3DModel", grid=GRID)
def hunyuan_video15(cls: Any) -> Made:
    model = cls(
        **HEADED,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_refiner_layers=1,
        text_embed_dim=20,
        text_embed_2_dim=12,
        image_embed_dim=8,
        rope_axes_dim=AXES,
        task_type="t2v",
    )
    mask, mask2 = torch.ones(1, WORDS), torch.ones(1, 6)
    mask[:, -3:] = 0
    mask2[:, -2:] = 0
    return model, {
        "hidden_states": latents(patch=1),
        "timestep": steps(),
        "encoder_hidden_states": noise(1, WORDS, 20),
        "encoder_attention_mask": mask,
        "encoder_hidden_states_2": noise(1, 6, 12),
        "encoder_attention_mask_2": mask2,
        "image_embeds": torch.zeros(1, 5, 8),
    }


@entry("transformer_joyimage", "JoyImageEditTransformer3DModel")
def joyimage(cls: Any) -> Made:
    model = cls(
        in_channels=4,
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        text_dim=20,
        num_layers=2,
        rope_dim_list=list(AXES),
    )
    return model, {
        "hidden_states": noise(1, 2, 4, 1, ROWS * 2, COLUMNS * 2),
        "timestep": steps(),
        "encoder_hidden_states": noise(1, WORDS, 20),
    }


@entry("transformer_kandinsky", "Kandinsky5Transformer3DModel")
def kandinsky5(cls: Any) -> Made:
    model = cls(
        in_text_dim=20,
        in_text_dim2=12,
        time_dim=16,
        model_dim=WIDTH,
        ff_dim=48,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=AXES,
    )
    return model, {
        "hidden_states": noise(1, FRAMES, ROWS * 2, COLUMNS * 2, 4),
        "encoder_hidden_states": noise(1, WORDS, 20),
        "timestep": steps(),
        "pooled_projections": noise(1, 12),
        "visual_rope_pos": [torch.arange(side) for side in (FRAMES, ROWS, COLUMNS)],
        "text_rope_pos": torch.arange(WORDS),
    }


@entry("transformer_kandinsky6", "Kandinsky6Transformer3DModel")
def kandinsky6(cls: Any) -> Made:
    model = cls(
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=20,
        in_text_dim2=12,
        time_dim=16,
        model_dim=WIDTH,
        ff_dim=48,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=AXES,
        visual_cond=False,
        in_audio_dim=6,
        out_audio_dim=6,
    )
    return model, {
        "hidden_states": noise(1, FRAMES, ROWS * 2, COLUMNS * 2, 4),
        "encoder_hidden_states": noise(1, WORDS, 20),
        "pooled_projections": noise(1, 12),
        "timestep": steps(),
        "audio_hidden_states": noise(1, 20, 6),
    }


@entry("transformer_kandinsky6_sr", "Kandinsky6SRTransformer3DModel")
def kandinsky6_sr(cls: Any) -> Made:
    model = cls(
        in_visual_dim=4,
        out_visual_dim=4,
        time_dim=16,
        model_dim=WIDTH,
        ff_dim=48,
        num_visual_blocks=2,
        axes_dims=AXES,
    )
    return model, {
        "hidden_states": noise(1, FRAMES, 16, 24, 9),
        "timestep": steps(),
    }


LTX = {
    **HEADED,
    "in_channels": 8,
    "out_channels": 8,
    "cross_attention_dim": WIDTH,
    "num_layers": 2,
    "caption_channels": 20,
}


@entry("transformer_ltx", "LTXVideoTransformer3DModel")
def ltx(cls: Any) -> Made:
    return cls(**LTX), {
        "hidden_states": noise(2, FRAMES * TOKENS, 8),
        "encoder_hidden_states": noise(2, WORDS, 20),
        "timestep": steps(2),
        "encoder_attention_mask": torch.ones(2, WORDS),
        "num_frames": FRAMES,
        "height": ROWS,
        "width": COLUMNS,
        "rope_interpolation_scale": (0.3, 32.0, 32.0),
    }


@entry("transformer_ltx", "LTXVideoTransformer3DModel/condition")
def ltx_condition(cls: Any) -> Made:
    """As the pipeline with conditions calls it: a timestep for each token, coordinates as data."""
    sides = torch.meshgrid(torch.arange(FRAMES), torch.arange(ROWS), torch.arange(COLUMNS))
    coordinates = (
        torch.stack(sides).reshape(1, 3, -1).float() * torch.tensor([8.0, 32, 32])[:, None]
    )
    timestep = torch.full((1, FRAMES * TOKENS), 500.0)
    timestep[:, :TOKENS] = 0
    return cls(**LTX), {
        "hidden_states": noise(1, FRAMES * TOKENS, 8),
        "encoder_hidden_states": noise(1, WORDS, 20),
        "timestep": timestep,
        "encoder_attention_mask": torch.ones(1, WORDS),
        "video_coords": coordinates,
    }


LTX2 = {
    **LTX,
    "audio_in_channels": 6,
    "audio_out_channels": 6,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 8,
    "audio_cross_attention_dim": 16,
}


def ltx2_inputs() -> dict[str, Any]:
    return {
        "hidden_states": noise(1, FRAMES * TOKENS, 8),
        "audio_hidden_states": noise(1, 20, 6),
        "encoder_hidden_states": noise(1, WORDS, 20),
        "audio_encoder_hidden_states": noise(1, WORDS, 20),
        "timestep": steps(),
        "encoder_attention_mask": torch.ones(1, WORDS),
        "audio_encoder_attention_mask": torch.ones(1, WORDS),
        "num_frames": FRAMES,
        "height": ROWS,
        "width": COLUMNS,
        "audio_num_frames": 20,
    }


@entry("transformer_ltx2", "LTX2VideoTransformer3DModel")
def ltx2(cls: Any) -> Made:
    return cls(**LTX2), ltx2_inputs()


@entry("transformer_ltx2", "LTX2VideoTransformer3DModel/split")
def ltx2_split(cls: Any) -> Made:
    """As released: rotary embeddings by halves, coordinates and timesteps as data."""
    sides = torch.meshgrid(torch.arange(FRAMES), torch.arange(ROWS), torch.arange(COLUMNS))
    corner = torch.stack(sides).reshape(1, 3, -1, 1).float() * torch.tensor([8.0, 32, 32]).view(
        3, 1, 1
    )
    audio = torch.arange(20.0).view(1, 1, -1, 1) * 0.04
    return cls(**LTX2, rope_type="split"), {
        **ltx2_inputs(),
        "timestep": torch.full((1, FRAMES * TOKENS), 500.0),
        "audio_timestep": torch.full((1, 20), 500.0),
        "video_coords": torch.cat((corner, corner + 32), -1),
        "audio_coords": torch.cat((audio, audio + 0.04), -1),
    }


@entry("transformer_sana_wm_refiner", "SanaWMLTX2RefinerTransformer3DModel", grid=GRID)
def sana_refiner(cls: Any) -> Made:
    grid = FRAMES * TOKENS
    return cls(**LTX2), {
        "hidden_states": noise(1, grid, 8),
        "encoder_hidden_states": noise(1, WORDS, 20),
        "timestep": torch.full((1, grid), 500.0),
        "video_rotary_emb": rotary(grid, WIDTH),
        "encoder_attention_mask": torch.ones(1, WORDS),
    }


@entry("transformer_minimax_h3", "MiniMaxH3Transformer3DModel")
def minimax_h3(cls: Any) -> Made:
    model = cls(
        **HEADED,
        hidden_size=WIDTH,
        num_layers=2,
        num_refiner_layers=1,
        ffn_dim=48,
        in_channels=4,
        audio_in_channels=6,
        text_dim=20,
        freq_dim=16,
        time_embed_hidden_dim=16,
        time_embed_dim=16,
        rope_freq_dim=2,
    )
    video, audio = FRAMES * TOKENS, 12
    length = WORDS + video + audio
    sides = torch.meshgrid(torch.arange(FRAMES), torch.arange(ROWS), torch.arange(COLUMNS))
    ids = torch.zeros(length, 3)
    ids[WORDS : WORDS + video] = torch.stack(sides, -1).reshape(-1, 3).float()
    tags = torch.tensor([1] * WORDS + [0] * video + [2] * audio)
    return model, {
        "hidden_states": noise(1, video, 16),
        "audio_hidden_states": noise(1, audio, 6),
        "encoder_hidden_states": noise(1, WORDS, 20),
        "timestep": torch.tensor([0.5]),
        "timestep_indices": torch.zeros(length, dtype=torch.long),
        "token_tags": tags,
        "position_ids": ids,
        "video_indices": torch.arange(WORDS, WORDS + video),
        "audio_indices": torch.arange(WORDS + video, length),
        "text_indices": torch.arange(WORDS),
    }


@entry("transformer_mochi", "MochiTransformer3DModel", grid=GRID)
def mochi(cls: Any) -> Made:
    model = cls(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=4,
        text_embed_dim=16,
        time_embed_dim=8,
        max_sequence_length=WORDS,
    )
    mask = torch.ones(1, WORDS, dtype=torch.bool)
    mask[:, -3:] = False
    return model, {
        "hidden_states": latents(),
        "encoder_hidden_states": noise(1, WORDS, 16),
        "timestep": steps(),
        "encoder_attention_mask": mask,
    }


@entry("transformer_motif_video", "MotifVideoTransformer3DModel")
def motif(cls: Any) -> Made:
    model = cls(
        **HEADED,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_single_layers=2,
        num_decoder_layers=1,
        text_embed_dim=20,
        rope_axes_dim=AXES,
    )
    return model, {
        "hidden_states": latents(),
        "timestep": steps(),
        "encoder_hidden_states": noise(1, WORDS, 20),
        "encoder_attention_mask": torch.ones(1, WORDS, dtype=torch.bool),
    }


@entry("transformer_sana_video", "SanaVideoTransformer3DModel")
def sana_video(cls: Any) -> Made:
    model = cls(
        **HEADED,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=HEAD,
        cross_attention_dim=WIDTH,
        caption_channels=20,
        sample_size=24,
        rope_max_seq_len=64,
    )
    return model, {
        "hidden_states": latents(),
        "encoder_hidden_states": noise(1, WORDS, 20),
        "timestep": steps(),
        "encoder_attention_mask": torch.ones(1, WORDS),
    }


@entry("transformer_temporal", "TransformerTemporalModel")
def temporal(cls: Any) -> Made:
    model = cls(**HEADED, in_channels=WIDTH, num_layers=2, norm_num_groups=8)
    return model, {
        "hidden_states": noise(2 * 16, WIDTH, 8, 12),
        "num_frames": 16,
    }


@entry("transformer_sana_wm", "SanaWMTransformer3DModel")
def sana_wm(cls: Any) -> Made:
    model = cls(
        in_channels=4,
        num_layers=2,
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        linear_head_dim=HEAD,
        softmax_every_n=2,
        caption_channels=20,
        chunk_plucker_channels=6,
    )
    return model, {
        "hidden_states": latents(patch=1),
        "timestep": torch.full((1, 1, FRAMES), 500.0),
        "encoder_hidden_states": noise(1, 1, WORDS, 20),
        "encoder_attention_mask": torch.ones(1, WORDS),
    }
