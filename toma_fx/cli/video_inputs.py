"""Arguments of transformers that are given videos: random numbers of the right shapes."""

from __future__ import annotations

from typing import Any

import torch

from toma_fx.cli.drawing import Drawing
from toma_fx.cli.picture_inputs import dtype_of

_FPS, _SOUNDS = 24, 25  # of LTX-2: frames, and latents of its sound, a second


def wan(model: Any, drawing: Drawing) -> dict[str, Any]:
    """Wan 2.1 and 2.2; TI2V, which has the deeper autoencoder, has a timestep for each token."""
    items, dtype, config = drawing.batch or 1, dtype_of(model), model.config
    deep = config.in_channels == 48
    side = 16 if deep else 8
    frames, rows, columns = _latents(drawing, 4, side)
    timestep = torch.full((items,), 500.0)
    if deep:
        tokens = frames * (rows // 2) * (columns // 2)
        timestep = torch.full((items, tokens), 500.0)
    return {
        "hidden_states": torch.randn(items, config.in_channels, frames, rows, columns, dtype=dtype),
        "timestep": timestep,
        "encoder_hidden_states": torch.randn(items, 512, config.text_dim, dtype=dtype),
        "return_dict": False,
    }


def hunyuan_video_15(model: Any, drawing: Drawing) -> dict[str, Any]:
    """Two texts with masks; no first picture, which zeros say."""
    items, dtype, config = drawing.batch or 1, dtype_of(model), model.config
    sides = _latents(drawing, 4, 16)
    words, glyphs, patches = 1000, 256, 729
    return {
        "hidden_states": torch.randn(items, config.in_channels, *sides, dtype=dtype),
        "timestep": torch.full((items,), 500.0, dtype=dtype),
        "encoder_hidden_states": torch.randn(items, words, config.text_embed_dim, dtype=dtype),
        "encoder_attention_mask": torch.ones(items, words, dtype=dtype),
        "encoder_hidden_states_2": torch.randn(items, glyphs, config.text_embed_2_dim, dtype=dtype),
        "encoder_attention_mask_2": torch.ones(items, glyphs, dtype=dtype),
        "image_embeds": torch.zeros(items, patches, config.image_embed_dim, dtype=dtype),
        "return_dict": False,
    }


def ltx2(model: Any, drawing: Drawing) -> dict[str, Any]:
    """Coordinates are data, in seconds and pixels; a sound of the same length comes along."""
    items, dtype, config = drawing.batch or 2, dtype_of(model), model.config
    frames, rows, columns = _latents(drawing, 8, 32)
    sounds, words = round(drawing.frames / _FPS * _SOUNDS), 1024
    device = next(model.parameters()).device
    return {
        "hidden_states": torch.randn(
            items, frames * rows * columns, config.in_channels, dtype=dtype
        ),
        "audio_hidden_states": torch.randn(items, sounds, config.audio_in_channels, dtype=dtype),
        "encoder_hidden_states": torch.randn(items, words, config.caption_channels, dtype=dtype),
        "audio_encoder_hidden_states": torch.randn(
            items, words, config.caption_channels, dtype=dtype
        ),
        "timestep": torch.full((items,), 500.0),
        "encoder_attention_mask": torch.ones(items, words, dtype=dtype),
        "audio_encoder_attention_mask": torch.ones(items, words, dtype=dtype),
        "num_frames": frames,
        "height": rows,
        "width": columns,
        "fps": float(_FPS),
        "audio_num_frames": sounds,
        "video_coords": model.rope.prepare_video_coords(items, frames, rows, columns, device),
        "audio_coords": model.audio_rope.prepare_audio_coords(items, sounds, device),
        "return_dict": False,
    }


def cogvideox(model: Any, drawing: Drawing) -> dict[str, Any]:
    """Frames come before channels; the tables of rotary embeddings come from the pipeline."""
    items, dtype, config = drawing.batch or 2, dtype_of(model), model.config
    frames, rows, columns = _latents(drawing, config.temporal_compression_ratio, 8)
    tokens = frames * (rows // config.patch_size) * (columns // config.patch_size)
    inputs: dict[str, Any] = {
        "hidden_states": torch.randn(items, frames, config.in_channels, rows, columns, dtype=dtype),
        "encoder_hidden_states": torch.randn(
            items, config.max_text_seq_length, config.text_embed_dim, dtype=dtype
        ),
        "timestep": torch.full((items,), 500.0),
        "return_dict": False,
    }
    if config.use_rotary_positional_embeddings:
        angles = torch.rand(tokens, config.attention_head_dim)
        inputs["image_rotary_emb"] = (angles.cos(), angles.sin())
    return inputs


def _latents(drawing: Drawing, time: int, side: int) -> tuple[int, int, int]:
    """Frames, rows and columns of what the autoencoder makes of a video."""
    return (drawing.frames - 1) // time + 1, drawing.height // side, drawing.width // side
