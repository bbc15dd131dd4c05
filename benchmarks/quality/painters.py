"""Prompts and seeds to pictures, with any form of the denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from toma_fx.demo import generators


class Painter(Protocol):
    """What makes pictures. Its denoiser may be replaced by a compiled one for a call.

    Attributes:
        name: of its tables.
        denoiser: called once a step, or more often by sequential guidance.
        dense_blocks: first blocks of each class that should not be merged.
        pipeline: whose `scheduler` tells where a generation stands.
        place: attribute of the pipeline that holds a denoiser: `"unet"` or `"transformer"`.
        names_calls: the loop says which call of the denoiser is which (`cache_context`).
    """

    name: str
    denoiser: nn.Module
    dense_blocks: int
    pipeline: Any
    place: str
    names_calls: bool

    def paint(self, prompts: Sequence[str], seeds: Sequence[int], steps: int, model: Any) -> Tensor:
        """`[B, 3, height, width]` in [0, 1], on the CPU; each picture from its own seed."""
        ...


@dataclass(eq=False)
class Loop:
    """What a follower needs to know of a loop that is no pipeline of diffusers."""

    scheduler: Any = field(default_factory=FlowMatchEulerDiscreteScheduler)


class EmojiPainter:
    """A small generator of this project."""

    place, names_calls = "transformer", False

    def __init__(
        self,
        name: str,
        size: str,
        device: torch.device,
        file: Path | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.generator = generators.load(name, size, file)
        self.denoiser = self.generator.model.to(device)
        if dtype != torch.float32:
            self.denoiser = Cast(self.denoiser.to(dtype), dtype)
        self.name = f"{name}-{size}"
        self.dense_blocks = self.generator.dense_blocks
        self.pipeline = Loop()

    def paint(self, prompts: Sequence[str], seeds: Sequence[int], steps: int, model: Any) -> Tensor:
        run = self.denoiser if model is None else model
        scheduler = self.pipeline.scheduler
        made = generators.generate(
            self.generator, prompts, seeds, steps, model=run, scheduler=scheduler
        )
        return made.cpu()


class PipelinePainter:
    """A diffusers pipeline in a local folder: SDXL, Flux, or another with a unet or transformer.

    Args:
        folder: as `DiffusionPipeline.save_pretrained` writes it.
        device: that it runs on.
        guidance: scale, or None for the pipeline's own.
        dtype: of the weights.
    """

    def __init__(
        self, folder: Path, device: torch.device, guidance: float | None, dtype: torch.dtype
    ) -> None:
        from diffusers import DiffusionPipeline

        self.pipeline = DiffusionPipeline.from_pretrained(
            folder, torch_dtype=dtype, local_files_only=True
        ).to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.place = "unet" if hasattr(self.pipeline, "unet") else "transformer"
        self.denoiser = getattr(self.pipeline, self.place)
        self.names_calls = hasattr(self.denoiser, "cache_context")
        self.name = folder.resolve().name
        self.dense_blocks = 0
        self.extra = {} if guidance is None else {"guidance_scale": guidance}

    def paint(self, prompts: Sequence[str], seeds: Sequence[int], steps: int, model: Any) -> Tensor:
        noise = [torch.Generator().manual_seed(seed) for seed in seeds]
        setattr(self.pipeline, self.place, self.denoiser if model is None else model)
        try:
            made = self.pipeline(
                list(prompts),
                num_inference_steps=steps,
                generator=noise,
                output_type="pt",
                **self.extra,
            )
        finally:
            setattr(self.pipeline, self.place, self.denoiser)
        pictures: Tensor = made.images
        return pictures.float().cpu()


class Cast(nn.Module):
    """A denoiser in another precision behind the same door: float32 in, float32 out."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map(lambda value: _cast(value, self.dtype), (args, kwargs))
        return tree_map(lambda value: _cast(value, torch.float32), self.model(*args, **kwargs))


def _cast(value: Any, dtype: torch.dtype) -> Any:
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(dtype) if floating else value
