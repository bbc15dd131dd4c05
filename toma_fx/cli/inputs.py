"""Arguments of a denoiser's call for a drawing of some size: random numbers of the right shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from toma_fx.cli import picture_inputs as pictures
from toma_fx.cli import video_inputs as videos
from toma_fx.cli.drawing import Drawing
from toma_fx.errors import ModelError

_TEXT = 77


def inputs_for(
    model: nn.Module,
    height: int,
    width: int,
    batch: int | None = None,
    frames: int | None = None,
    references: int = 0,
) -> dict[str, Any]:
    """Keyword arguments of one denoising step.

    Args:
        model: a diffusers denoiser.
        height: of the picture in pixels.
        width: likewise.
        batch: items; None for what one picture needs (two where guidance doubles it).
        frames: of a video; None for the usual number.
        references: pictures of the same size that are edited, beside the one that is drawn.

    Raises:
        ModelError: the model takes no drawing of this size, or nothing is known of its class.
    """
    name = type(model).__name__
    if name not in _BUILDERS:
        raise ModelError(f"no inputs are known for {name} (known: {', '.join(_BUILDERS)})")
    known = _BUILDERS[name]
    for side, size in (("height", height), ("width", width)):
        if size < known.step or size % known.step:
            raise ModelError(
                f"{name} takes a {side} that is a multiple of {known.step}, not {size}"
            )
    drawing = Drawing(height, width, _frames(name, known, frames), batch, references)
    if references and not known.edits:
        raise ModelError(f"{name} edits no pictures")
    with next(model.parameters()).device:
        return known.build(model, drawing)


def drawn_grid(inputs: Mapping[str, Any], height: int, width: int) -> tuple[int, ...]:
    """The grid of what is drawn, where a graph does not tell it from what comes along."""
    hidden = inputs["hidden_states"]
    return tuple(hidden.shape[2:]) if hidden.dim() == 5 else (height // 16, width // 16)


def _frames(name: str, known: _Known, frames: int | None) -> int:
    if not known.every:
        if frames not in (None, 1):
            raise ModelError(f"{name} draws pictures, not {frames} frames")
        return 1
    frames = known.frames if frames is None else frames
    if frames < 1 or (frames - 1) % known.every:
        raise ModelError(f"{name} takes 1 + a multiple of {known.every} frames, not {frames}")
    return frames


def _unet(model: Any, drawing: Drawing) -> dict[str, Any]:
    items, dtype, config = drawing.batch or 2, pictures.dtype_of(model), model.config
    inputs: dict[str, Any] = {
        "sample": torch.randn(
            items, config.in_channels, drawing.height // 8, drawing.width // 8, dtype=dtype
        ),
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


@dataclass(frozen=True)
class _Known:
    """What a class takes.

    Attributes:
        build: makes the arguments.
        step: of a side in pixels: of the autoencoder, twice that where the model cuts patches of
            two.
        every: frames that the autoencoder makes one of; 0 for models of pictures.
        frames: of a video, where no other number is asked for.
        edits: whether pictures to be edited may come along.
    """

    build: Callable[[Any, Drawing], dict[str, Any]]
    step: int
    every: int = 0
    frames: int = 1
    edits: bool = False


_BUILDERS = {
    "UNet2DConditionModel": _Known(_unet, 8),
    "FluxTransformer2DModel": _Known(pictures.flux, 16, edits=True),
    "SD3Transformer2DModel": _Known(pictures.sd3, 16),
    "Flux2Transformer2DModel": _Known(pictures.flux2, 16, edits=True),
    "ChromaTransformer2DModel": _Known(pictures.chroma, 16),
    "QwenImageTransformer2DModel": _Known(pictures.qwen_image, 16, edits=True),
    "ZImageTransformer2DModel": _Known(pictures.z_image, 16),
    "WanTransformer3DModel": _Known(videos.wan, 16, every=4, frames=81),
    "HunyuanVideo15Transformer3DModel": _Known(videos.hunyuan_video_15, 16, every=4, frames=121),
    "LTX2VideoTransformer3DModel": _Known(videos.ltx2, 32, every=8, frames=121),
    "CogVideoXTransformer3DModel": _Known(videos.cogvideox, 16, every=4, frames=49),
}
