"""Small pipelines with random weights, and what a call of each needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusion3Pipeline,
)
from torch import Tensor, nn

from tests.models import sd3
from toma_fx.demo import pipelines


@dataclass
class Pipe:
    """A pipeline under test.

    Attributes:
        pipeline: one of diffusers.
        component: name of its denoiser.
        widths: of the prompt's embeddings and of its pooled embedding.
    """

    pipeline: Any
    component: str
    widths: tuple[int, int]
    negative: bool

    @property
    def denoiser(self) -> nn.Module:
        model: nn.Module = getattr(self.pipeline, self.component)
        return model

    def prompts(self, seed: int, batch: int) -> dict[str, Tensor]:
        """Embeddings, negative ones too where the pipeline takes them."""
        numbers = torch.Generator().manual_seed(seed)
        names = ("prompt_embeds", "pooled_prompt_embeds")
        sizes = ((batch, 20, self.widths[0]), (batch, self.widths[1]))
        return {
            f"{part}{name}": torch.randn(size, generator=numbers)
            for part in ("", *(["negative_"] if self.negative else []))
            for name, size in zip(names, sizes, strict=True)
        }

    def run(
        self,
        prompt: int = 0,
        seed: int = 0,
        steps: int = 3,
        side: tuple[int, int] = (64, 64),
        batch: int = 1,
        **more: Any,
    ) -> Tensor:
        """Latents of a generation; `prompt` and `seed` are seeds."""
        given = self.prompts(prompt, batch)
        noise = torch.Generator().manual_seed(seed)
        arguments = {**given, "height": side[0], "width": side[1], "num_inference_steps": steps}
        latents: Tensor = self.pipeline(
            **{**arguments, "output_type": "latent", "generator": noise, **more}
        ).images
        return latents


def sdxl_pipe() -> Pipe:
    pipeline = pipelines.stable_diffusion_xl(channels=64).pipeline
    return _quiet(Pipe(pipeline, "unet", (64, 32), True))


def flux_pipe() -> Pipe:
    pipeline = pipelines.flux(channels=64).pipeline
    return _quiet(Pipe(pipeline, "transformer", (64, 32), False))


def sd3_pipe() -> Pipe:
    """Stable Diffusion 3.5 medium's layout: dual attention in the first blocks."""
    transformer = sd3(dual_attention_layers=(0, 1))
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
        ).eval(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    return _quiet(Pipe(pipeline, "transformer", (32, 32), True))


PIPES = {"sdxl": sdxl_pipe, "sd3": sd3_pipe, "flux": flux_pipe}


def _quiet(pipe: Pipe) -> Pipe:
    pipe.pipeline.set_progress_bar_config(disable=True)
    return pipe
