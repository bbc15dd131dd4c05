"""Models by name, by folder or by `config.json`: architectures without weights.

Facts of the public configurations of each model; a name that ends in `-small` has its layout in
sizes that a CPU can run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from toma_fx.cli import current
from toma_fx.config import closest
from toma_fx.errors import MissingPackageError, ModelError

_UNET, _FLUX, _SD3 = "UNet2DConditionModel", "FluxTransformer2DModel", "SD3Transformer2DModel"
_FLUX2, _QWEN = "Flux2Transformer2DModel", "QwenImageTransformer2DModel"
_WAN = "WanTransformer3DModel"
_SDXL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
    "sample_size": 128,
}
_SDXL_SMALL = {
    **_SDXL,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (64, 320),
    "transformer_layers_per_block": (1, 2),
    "attention_head_dim": (1, 5),
    "cross_attention_dim": 256,
}
_FLUX_SMALL = {
    "num_layers": 2,
    "num_single_layers": 4,
    "attention_head_dim": 64,
    "num_attention_heads": 6,
    "joint_attention_dim": 256,
    "pooled_projection_dim": 128,
    "axes_dims_rope": (8, 28, 28),
    "guidance_embeds": True,
}
_SD35 = {
    "sample_size": 128,
    "in_channels": 16,
    "out_channels": 16,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
    "qk_norm": "rms_norm",
}


@dataclass(frozen=True)
class Preset:
    """A diffusers class, its configuration, and what it is asked to draw."""

    name: str
    class_name: str
    config: dict[str, Any]
    # Height, width and frames, where they are not those of every picture.
    size: tuple[int, int, int] | None = None
    # Pictures that are edited, beside the one that is drawn.
    references: int = 0
    # Whether a call reads values, of which tensors on the meta device have none.
    values: bool = False

    @property
    def needs_grid(self) -> bool:
        """Whether no graph tells what is drawn: others come along, or the model is several."""
        return self.references > 0 or self.values


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("sdxl", _UNET, _SDXL),
        Preset("flux-dev", _FLUX, {"guidance_embeds": True}),
        Preset(
            "sd15",
            _UNET,
            {
                "block_out_channels": (320, 640, 1280, 1280),
                "attention_head_dim": 8,
                "cross_attention_dim": 768,
                "sample_size": 64,
            },
        ),
        Preset(
            "sd21",
            _UNET,
            {
                "block_out_channels": (320, 640, 1280, 1280),
                "attention_head_dim": (5, 10, 20, 20),
                "cross_attention_dim": 1024,
                "use_linear_projection": True,
                "sample_size": 96,
            },
        ),
        Preset(
            "sd35-medium",
            _SD3,
            {
                **_SD35,
                "num_layers": 24,
                "num_attention_heads": 24,
                "caption_projection_dim": 1536,
                "pos_embed_max_size": 384,
                "dual_attention_layers": tuple(range(13)),
            },
        ),
        Preset(
            "sd35-large",
            _SD3,
            {
                **_SD35,
                "num_layers": 38,
                "num_attention_heads": 38,
                "caption_projection_dim": 2432,
                "pos_embed_max_size": 192,
            },
        ),
        Preset("kontext", _FLUX, current.KONTEXT, references=1),
        Preset("chroma", "ChromaTransformer2DModel", current.CHROMA),
        Preset("flux2-dev", _FLUX2, current.FLUX2_DEV),
        Preset("flux2-klein", _FLUX2, current.FLUX2_KLEIN),
        Preset("qwen-image", _QWEN, current.QWEN_IMAGE),
        Preset("qwen-image-edit", _QWEN, current.QWEN_IMAGE_EDIT, references=1, values=True),
        Preset("z-image-turbo", "ZImageTransformer2DModel", current.Z_IMAGE_TURBO),
        Preset("wan21-1.3b", _WAN, current.WAN21_1_3B, size=(480, 832, 81)),
        Preset("wan22-a14b", _WAN, current.WAN22_A14B, size=(720, 1280, 81)),
        Preset("wan22-ti2v-5b", _WAN, current.WAN22_TI2V_5B, size=(704, 1280, 121)),
        Preset("ltx2", "LTX2VideoTransformer3DModel", current.LTX2, size=(512, 768, 121)),
        Preset(
            "hunyuan-video-15",
            "HunyuanVideo15Transformer3DModel",
            current.HUNYUAN_VIDEO_15,
            size=(720, 1280, 121),
            values=True,
        ),
        Preset(
            "cogvideox-5b",
            "CogVideoXTransformer3DModel",
            current.COGVIDEOX_5B,
            size=(480, 720, 49),
        ),
        Preset("sdxl-small", _UNET, _SDXL_SMALL),
        Preset("flux-small", _FLUX, _FLUX_SMALL),
    )
}


def find_preset(name: str) -> Preset:
    """A preset by name, or the configuration in a file or a model or pipeline folder.

    Raises:
        ModelError: neither a name nor a readable configuration of a denoiser.
    """
    if name in PRESETS:
        return PRESETS[name]
    path = Path(name)
    if not path.exists():
        known = ", ".join(PRESETS)
        hint = closest(name, PRESETS)
        raise ModelError(f"{name!r} is no file and no preset{hint} (presets: {known})")
    file = _config_file(path)
    config = _read(file)
    class_name = config.get("_class_name")
    if not isinstance(class_name, str):
        raise ModelError(f"{file} names no model class: _class_name is missing")
    return Preset(str(path), class_name, config)


def build(preset: Preset, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The model with random weights; on the meta device without any.

    Raises:
        ModelError: diffusers has no such class, or the configuration does not fit it.
        MissingPackageError: diffusers is not installed.
    """
    try:
        import diffusers
    except ImportError as error:
        raise MissingPackageError("a preset", "diffusers", "diffusers") from error
    cls = getattr(diffusers, preset.class_name, None)
    if cls is None or not hasattr(cls, "from_config"):
        raise ModelError(f"diffusers {diffusers.__version__} has no model {preset.class_name}")
    try:
        with device:
            model: nn.Module = cls.from_config(preset.config)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ModelError(
            f"{preset.name} is no configuration of {preset.class_name}: {reason}"
        ) from error
    return model.to(dtype).eval()


def build_empty(preset: Preset, dtype: torch.dtype) -> nn.Module:
    """The model without weights: on the meta device, or in memory that nothing is written to.

    Raises:
        ModelError: as `build`.
    """
    model = build(preset, torch.device("meta"), dtype)
    return model.to_empty(device="cpu") if preset.values else model


def _config_file(path: Path) -> Path:
    """The denoiser's `config.json` of a file, a model folder or a pipeline folder."""
    if path.is_file():
        return path
    for place in ("config.json", "unet/config.json", "transformer/config.json"):
        if (path / place).is_file():
            return path / place
    raise ModelError(f"{path} holds no config.json, and none in unet/ or transformer/")


def _read(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{file} is no configuration: it holds a {type(config).__name__}")
    return config
