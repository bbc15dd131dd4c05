"""Pictures from captions and seeds, by diffusers' own flow-matching scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from toma_fx.demo.generators.captions import Text, embed
from toma_fx.demo.generators.models import Generator


@torch.no_grad()
def generate(
    generator: Generator,
    captions: Sequence[str],
    seeds: Sequence[int],
    steps: int = 20,
    guidance: float = 2.5,
    model: Any = None,
    scheduler: Any = None,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """One picture a caption and seed.

    Args:
        generator: trained.
        captions: `B` of them.
        seeds: `B`; a picture depends on its own seed alone, not on its place in the batch.
        steps: denoising steps; time grows in proportion.
        guidance: how much more the caption counts; a larger value costs variety. 1 is
            none.
        model: a compiled form of the generator's model.
        scheduler: `FlowMatchEulerDiscreteScheduler`, for a model that follows where a generation
            stands; its timesteps are set anew. By default one of this call's own.
        size: height and width in pixels, multiples of 4 `patch`; by default the square that the
            generator was trained for, and others it draws less well.

    Returns:
        `[B, 3, height, width]` float32 in [0, 1].
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    device = next(generator.model.parameters()).device
    scheduler = scheduler or FlowMatchEulerDiscreteScheduler()
    # As the Flux pipeline spaces them: the default's last step would begin at almost no noise.
    scheduler.set_timesteps(sigmas=[1 - step / steps for step in range(steps)], device=device)
    text = embed(captions).to(device)
    picture = noise_of(seeds, *(size or (generator.pixels,))).to(device)
    for timestep in scheduler.timesteps:
        sigma = (timestep / 1000).expand(len(seeds))
        velocity = guided(generator, picture, sigma, text, guidance, model)
        picture = scheduler.step(velocity, timestep, picture).prev_sample
    return (picture.float() / 2 + 0.5).clamp(0, 1)


def guided(
    generator: Generator, noisy: Tensor, sigma: Tensor, text: Text, guidance: float, model: Any
) -> Tensor:
    """The velocity with guidance: an input of the model, or from a call of both halves."""
    if not generator.two_passes:
        return generator.velocity(noisy, sigma, text, torch.full_like(sigma, guidance), model)
    both = Text(*(torch.cat((torch.zeros_like(part), part)) for part in text))
    twice, one = noisy.repeat(2, 1, 1, 1), torch.ones_like(sigma).repeat(2)
    empty, with_text = generator.velocity(twice, sigma.repeat(2), both, one, model).chunk(2)
    return empty + guidance * (with_text - empty)


def noise_of(seeds: Sequence[int], height: int, width: int | None = None) -> Tensor:
    """`[B, 3, height, width]`, square by default, each from its seed, the same on every device."""
    shape = (3, height, width or height)
    return torch.stack(
        [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    )
