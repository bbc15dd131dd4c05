"""The shallow path is the UNet, once its deep features are given."""

from __future__ import annotations

import copy
from typing import Any

import torch

from benchmarks.quality.deepcache import DeepCache
from benchmarks.quality.generations import Generations
from benchmarks.quality.painters import EmojiPainter, Loop


def inputs(seed: int) -> dict[str, Any]:
    chance = torch.Generator().manual_seed(seed)
    return {
        "sample": torch.randn(1, 12, 8, 8, generator=chance),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 8, 128, generator=chance),
        "added_cond_kwargs": {
            "text_embeds": torch.randn(1, 128, generator=chance),
            "time_ids": torch.zeros(1, 6),
        },
        "return_dict": False,
    }


@torch.no_grad()
def test_a_step_between_equals_a_full_one_of_the_same_input(unet: EmojiPainter) -> None:
    plain, loop = unet.denoiser, Loop()
    model = DeepCache(copy.deepcopy(plain), Generations(loop), "eager", every=2).model
    assert type(model) is type(plain)
    first, second = inputs(0), inputs(1)
    expected = plain(**first)[0]
    for _ in range(2):  # full, then on what that left
        torch.testing.assert_close(model(**first)[0], expected)
    torch.testing.assert_close(model(**second)[0], plain(**second)[0])  # full again
    shallow = model(**first)[0]
    assert not torch.allclose(shallow, expected)
    assert not torch.allclose(shallow, plain(**second)[0])
    loop.scheduler.set_timesteps(3)  # a generation begins
    torch.testing.assert_close(model(**first)[0], expected)


@torch.no_grad()
def test_a_last_block_with_attention(unet: EmojiPainter) -> None:
    """As in Stable Diffusion 1."""
    from diffusers import UNet2DConditionModel

    config = dict(unet.denoiser.config)
    config["up_block_types"] = ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D")
    config["down_block_types"] = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
    plain = UNet2DConditionModel.from_config(config).eval()
    loop = Loop()
    model = DeepCache(copy.deepcopy(plain), Generations(loop), "eager", every=2).model
    for _ in range(2):
        torch.testing.assert_close(model(**inputs(0))[0], plain(**inputs(0))[0])
