"""Small SDXL and Flux pipelines with random weights: diffusers' own classes, nothing downloaded.

The layouts are those of the real models, fewer and narrower: attention blocks between
convolutions for SDXL, joint and single blocks with rotary positions for Flux. Prompts are
embeddings of random numbers, so that no text encoder is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from toma_fx.demo.errors import require

_TEXT_WIDTH, _POOLED_WIDTH, _TIME_WIDTH = 64, 32, 8
_HEAD = 32


@dataclass(frozen=True)
class Job:
    """A text-to-image pipeline and the arguments of a call.

    Attributes:
        name: of the model family.
        detail: one line on sizes.
        pipeline: a diffusers pipeline.
        component: attribute of the pipeline that holds the denoiser, `"unet"` or `"transformer"`.
        arguments: prompt embeddings and picture size in pixels.
        seed: of the initial noise.
    """

    name: str
    detail: str
    pipeline: Any
    component: str
    arguments: dict[str, Any]
    seed: int

    @property
    def denoiser(self) -> nn.Module:
        """The model that runs once a step."""
        model: nn.Module = getattr(self.pipeline, self.component)
        return model

    def run(self, model: nn.Module, steps: int, bar: str, output: str = "latent") -> Tensor:
        """Generate with `model` as the denoiser; the same noise every time.

        Args:
            model: the denoiser, or a compiled one.
            steps: denoising steps; time grows in proportion.
            bar: label of the progress bar.
            output: `"latent"`, or `"pt"` to decode a picture as well.

        Returns:
            Latents, or a picture `[1, 3, height, width]` in [0, 1].
        """
        setattr(self.pipeline, self.component, model)
        self.pipeline.set_progress_bar_config(desc=bar, leave=False)
        noise = torch.Generator().manual_seed(self.seed)
        result = self.pipeline(
            **self.arguments, num_inference_steps=steps, output_type=output, generator=noise
        )
        images: Tensor = result.images
        return images


def stable_diffusion_xl(
    grid: tuple[int, int] = (48, 48), channels: int = 192, depth: int = 1, seed: int = 0
) -> Job:
    """A small SDXL pipeline with guidance, so that the denoiser's batch is two.

    Args:
        grid: height and width in tokens of the attention blocks; costs grow with the square of
            the tokens. By default as many as the real model has at 768×768.
        channels: width of the attention blocks, a multiple of 32.
        depth: transformer blocks an attention stage; there are four stages.
        seed: of the weights, the prompt and the noise.

    Raises:
        DemoError: diffusers or transformers is not installed.
    """
    require("diffusers", "transformers")
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    torch.manual_seed(seed)
    pipeline = StableDiffusionXLPipeline(
        vae=_autoencoder(),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=_unet(channels, depth),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
        add_watermarker=False,
    )
    height, width = 4 * grid[0], 4 * grid[1]  # the VAE halves each side, the UNet once more
    arguments = {
        "prompt_embeds": torch.randn(1, 77, _TEXT_WIDTH),
        "negative_prompt_embeds": torch.randn(1, 77, _TEXT_WIDTH),
        "pooled_prompt_embeds": torch.randn(1, _POOLED_WIDTH),
        "negative_pooled_prompt_embeds": torch.randn(1, _POOLED_WIDTH),
        "guidance_scale": 5.0,
        "height": height,
        "width": width,
    }
    detail = _detail(pipeline.unet, grid, channels, "batch 2: guidance, Euler scheduler")
    return Job("Stable Diffusion XL", detail, pipeline, "unet", arguments, seed)


def flux(
    grid: tuple[int, int] = (72, 56), channels: int = 192, depth: int = 1, seed: int = 0
) -> Job:
    """A small Flux pipeline. Its token grid is data: the pipeline passes position ids.

    Args:
        grid: height and width in tokens; costs grow with the square of the tokens. By default as
            many as the real model has at 1152×896.
        channels: width of the blocks, a multiple of 32.
        depth: joint blocks; there are twice as many single blocks.
        seed: of the weights, the prompt and the noise.

    Raises:
        DemoError: diffusers or transformers is not installed.
    """
    require("diffusers", "transformers")
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    torch.manual_seed(seed)
    pipeline = FluxPipeline(
        vae=_autoencoder(),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        transformer=_flux_transformer(channels, depth),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    )
    arguments = {
        "prompt_embeds": torch.randn(1, 32, _TEXT_WIDTH),
        "pooled_prompt_embeds": torch.randn(1, _POOLED_WIDTH),
        "height": 4 * grid[0],  # the VAE halves each side, packing once more
        "width": 4 * grid[1],
    }
    detail = _detail(pipeline.transformer, grid, channels, "flow-matching Euler scheduler")
    return Job("Flux", detail, pipeline, "transformer", arguments, seed)


def _unet(channels: int, depth: int) -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        block_out_channels=(32, channels),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, depth),
        attention_head_dim=(1, channels // _HEAD),
        cross_attention_dim=_TEXT_WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=_TIME_WIDTH,
        projection_class_embeddings_input_dim=6 * _TIME_WIDTH + _POOLED_WIDTH,
        norm_num_groups=16,
    ).eval()


def _flux_transformer(channels: int, depth: int) -> nn.Module:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        in_channels=16,  # four latent channels, packed two by two
        num_layers=depth,
        num_single_layers=2 * depth,
        attention_head_dim=_HEAD,
        num_attention_heads=channels // _HEAD,
        joint_attention_dim=_TEXT_WIDTH,
        pooled_projection_dim=_POOLED_WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(8, 12, 12),
    ).eval()


def _autoencoder() -> nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        norm_num_groups=8,
        shift_factor=0.0,
    ).eval()


def _detail(model: nn.Module, grid: tuple[int, int], channels: int, more: str) -> str:
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    size = f"{grid[0]} x {grid[1]} tokens of {channels} channels"
    return f"{millions:.1f} M random weights, {size}, {more}"
