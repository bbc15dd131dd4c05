"""Two small generators in the architectures of SDXL and Flux, as classes of diffusers.

They work on pixels, packed `patch × patch` into channels, where the real models work on the
latents of an autoencoder. Time is that of flow matching: σ = 1 is noise, σ = 0 the picture, and a
step follows the velocity, `noise − picture`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toma_fx.demo.errors import DemoError, require
from toma_fx.demo.generators.captions import WIDTH, WORDS, Text

NAMES = ("emoji-sdxl", "emoji-flux")
SIZES = ("small", "full")
FOLDER = Path(__file__).parent
_LEAST = 0.05  # noise by which an error of the picture is divided

_UNET: dict[str, Any] = {
    "cross_attention_dim": WIDTH,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 16,
    "projection_class_embeddings_input_dim": WIDTH + 6 * 16,
    "norm_num_groups": 16,
}
_FLUX: dict[str, Any] = {
    "joint_attention_dim": WIDTH,
    "pooled_projection_dim": WIDTH,
    "guidance_embeds": True,
}
_CONFIGS: dict[tuple[str, str], tuple[int, int, dict[str, Any]]] = {
    ("emoji-sdxl", "small"): (
        64,
        2,
        _UNET
        | {
            "block_out_channels": (48, 96),
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2),
            "attention_head_dim": (1, 3),
        },
    ),
    ("emoji-sdxl", "full"): (
        128,
        2,
        _UNET
        | {
            "block_out_channels": (64, 160, 256),
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 3),
            "attention_head_dim": (1, 5, 8),
        },
    ),
    ("emoji-flux", "small"): (
        64,
        4,
        _FLUX
        | {
            "num_layers": 2,
            "num_single_layers": 4,
            "attention_head_dim": 48,
            "num_attention_heads": 4,
            "axes_dims_rope": (8, 20, 20),
        },
    ),
    ("emoji-flux", "full"): (
        128,
        4,
        _FLUX
        | {
            "num_layers": 3,
            "num_single_layers": 8,
            "attention_head_dim": 64,
            "num_attention_heads": 5,
            "axes_dims_rope": (8, 28, 28),
        },
    ),
}


@dataclass(frozen=True)
class Generator:
    """A denoiser and how pictures are packed for it.

    Attributes:
        name: one of `NAMES`.
        size: one of `SIZES`.
        model: diffusers' `UNet2DConditionModel` or `FluxTransformer2DModel`.
        pixels: side of a picture.
        patch: side of the square that is packed into channels.
    """

    name: str
    size: str
    model: nn.Module
    pixels: int
    patch: int

    @property
    def distilled(self) -> bool:
        """Guidance is an input of the model."""
        return self.name == "emoji-flux"

    @property
    def two_passes(self) -> bool:
        """Guidance takes a second pass without the caption, as `true_cfg_scale` of Flux's pipeline.

        The small Flux was never taught what its input means, which then stays at one.
        """
        return not self.distilled or self.size == "small"

    @property
    def predicts_picture(self) -> bool:
        """The model predicts the picture itself, not the velocity.

        Noise of a token is its own, and no other token can stand for it: a transformer of pixels
        that must return the noise has little that could be merged. Convolutions between the
        transformers of a UNet carry the noise past them. (On predicting pictures: Li and He, "Back
        to Basics: Let Denoising Generative Models Denoise", 2025.)
        """
        return self.name == "emoji-flux"

    @property
    def dense_blocks(self) -> int:
        """First blocks of each class that stay at full length where tokens merge (`skip_blocks`).

        Tokens of Flux learn their places from RoPE alone, inside attention: in the first blocks
        they are noise that looks alike everywhere, and merge with tokens of other places. The
        paper's public code for Flux leaves out the first five of each class.
        """
        return 2 if self.name == "emoji-flux" else 0

    def velocity(
        self, noisy: Tensor, sigma: Tensor, text: Text, guidance: Tensor, model: Any = None
    ) -> Tensor:
        """One call of the denoiser: `noise − picture`, predicted.

        Args:
            noisy: `[B, 3, height, width]`, pictures in [-1, 1] mixed with noise.
            sigma: `[B]` in [0, 1], the share of noise.
            text: of `B` captions.
            guidance: `[B]`, read by distilled models only.
            model: a compiled form of `model`, or another with its signature.

        Returns:
            As `noisy`.
        """
        run = self.model if model is None else model
        call = self._flux if self.distilled else self._unet
        found = call(run, noisy, sigma, text, guidance)
        if not self.predicts_picture:
            return found
        return (noisy - found) / sigma.clamp(min=_LEAST)[:, None, None, None]

    def _unet(self, run: Any, noisy: Tensor, sigma: Tensor, text: Text, guidance: Tensor) -> Tensor:
        size = [float(side) for side in noisy.shape[2:]]
        sizes = noisy.new_tensor([*size, 0, 0, *size]).expand(len(noisy), -1)
        predicted = run(
            F.pixel_unshuffle(noisy, self.patch),
            sigma * 1000,
            encoder_hidden_states=text.words,
            added_cond_kwargs={"text_embeds": text.pooled, "time_ids": sizes},
            return_dict=False,
        )[0]
        return F.pixel_shuffle(predicted, self.patch)

    def _flux(self, run: Any, noisy: Tensor, sigma: Tensor, text: Text, guidance: Tensor) -> Tensor:
        sides = [side // self.patch for side in noisy.shape[2:]]
        predicted = run(
            hidden_states=F.pixel_unshuffle(noisy, self.patch).flatten(2).transpose(1, 2),
            encoder_hidden_states=text.words,
            pooled_projections=text.pooled,
            timestep=sigma,
            img_ids=_positions(sides, noisy.device),
            txt_ids=torch.zeros(WORDS, 3, device=noisy.device),
            guidance=guidance,
            return_dict=False,
        )[0]
        return F.pixel_shuffle(predicted.transpose(1, 2).unflatten(2, sides), self.patch)


def build(name: str, size: str = "small") -> Generator:
    """A generator with random weights.

    Raises:
        KeyError: no such name or size.
        DemoError: diffusers is not installed.
    """
    require("diffusers")
    import diffusers

    pixels, patch, config = _CONFIGS[name, size]
    channels = 3 * patch**2
    if name == "emoji-flux":
        model = diffusers.FluxTransformer2DModel(in_channels=channels, **config)
    else:
        side = pixels // patch
        sizes = {"in_channels": channels, "out_channels": channels, "sample_size": side}
        model = diffusers.UNet2DConditionModel(**sizes, **config)
    return Generator(name, size, model, pixels, patch)


def load(name: str, size: str = "small", file: Path | None = None) -> Generator:
    """A trained generator in float32, ready for inference.

    Args:
        name: one of `NAMES`.
        size: one of `SIZES`.
        file: safetensors; by default the weights beside this module.

    Raises:
        DemoError: there are no weights, or a package is missing.
    """
    require("safetensors")
    from safetensors.torch import load_file

    file = file or FOLDER / f"{name}-{size}.safetensors"
    if not file.is_file():
        raise DemoError(f"no weights of {name} ({size}) at {file}")
    generator = build(name, size)
    weights = {key: value.float() for key, value in load_file(file).items()}
    generator.model.load_state_dict(weights)
    generator.model.eval().requires_grad_(False)
    return generator


def _positions(sides: Sequence[int], device: torch.device) -> Tensor:
    """`[height · width, 3]`: zero, row, column, as the Flux pipeline passes them."""
    rows, columns = torch.meshgrid(*map(torch.arange, sides), indexing="ij")
    ids = torch.stack((torch.zeros_like(rows), rows, columns), -1)
    return ids.flatten(0, 1).float().to(device)
