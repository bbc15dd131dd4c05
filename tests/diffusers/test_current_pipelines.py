"""Pipelines of today, as diffusers runs them: each merges, reuses its plans and compiles once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from tests.zoo import packed, pictures, videos
from tests.zoo.entries import alive
from toma_fx import reuse_stats
from toma_fx.diffusers import TokenMergingConfig, apply, remove, status

WORDS, STEPS, STEPS_A_PLAN = 8, 4, 3
CONFIG: dict[str, Any] = {"window": 4, "min_tokens": 32, "regions": "all"}


def noise(*sizes: int, seed: int) -> Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed))


def built(pipeline: str, transformer: nn.Module, **more: Any) -> Any:
    """A pipeline without text encoders and without a decoder."""
    torch.manual_seed(0)
    parts: dict[str, Any] = dict.fromkeys(("vae", "text_encoder", "tokenizer"))
    made = getattr(diffusers, pipeline)(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        transformer=alive(transformer).eval(),
        **parts,
        **more,
    )
    made.set_progress_bar_config(disable=True)
    return made


Call = dict[str, Any]
Case = tuple[Any, Callable[[int], Call], int]
"""A pipeline, its arguments for a prompt, and calls of the denoiser a step."""


def wan() -> Case:
    pipe = built("WanPipeline", diffusers.WanTransformer3DModel(**videos.WAN))

    def call(prompt: int) -> Call:
        words = [noise(1, WORDS, 20, seed=prompt + side) for side in (0, 100)]
        named = dict(zip(("prompt_embeds", "negative_prompt_embeds"), words, strict=True))
        return {**named, "height": 96, "width": 128, "num_frames": 5, "guidance_scale": 3.0}

    return pipe, call, 2


def qwen_image() -> Case:
    model = packed.qwen(diffusers.QwenImageTransformer2DModel)
    pipe = built("QwenImagePipeline", model)

    def call(prompt: int) -> Call:
        found: Call = {"height": 96, "width": 128, "true_cfg_scale": 3.0}
        for side, seed in (("", prompt), ("negative_", prompt + 100)):
            found[f"{side}prompt_embeds"] = noise(1, WORDS, 20, seed=seed)
            found[f"{side}prompt_embeds_mask"] = torch.ones(1, WORDS, dtype=torch.long)
        return found

    return pipe, call, 2


def z_image() -> Case:
    model, _ = pictures.z_image(diffusers.ZImageTransformer2DModel)
    pipe = built("ZImagePipeline", model)

    def call(prompt: int) -> Call:
        """Two prompts that are padded to two lengths, as a long one and an empty one are."""
        sides = ((4 * WORDS, 0), (WORDS, 100))
        words = [[noise(length, 20, seed=prompt + side)] for length, side in sides]
        named = dict(zip(("prompt_embeds", "negative_prompt_embeds"), words, strict=True))
        return {**named, "height": 128, "width": 192, "guidance_scale": 3.0}

    return pipe, call, 1


def flux2() -> Case:
    model, _ = packed.flux2(diffusers.Flux2Transformer2DModel)
    pipe = built("Flux2Pipeline", model)

    def call(prompt: int) -> Call:
        return {"prompt_embeds": noise(1, WORDS, 20, seed=prompt), "height": 96, "width": 128}

    return pipe, call, 1


def ltx() -> Case:
    pipe = built("LTXPipeline", diffusers.LTXVideoTransformer3DModel(**videos.LTX))

    def call(prompt: int) -> Call:
        found: Call = {"height": 192, "width": 256, "num_frames": 17, "guidance_scale": 3.0}
        for side, seed in (("", prompt), ("negative_", prompt + 100)):
            found[f"{side}prompt_embeds"] = noise(1, WORDS, 20, seed=seed)
            found[f"{side}prompt_attention_mask"] = torch.ones(1, WORDS)
        return found

    return pipe, call, 1


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    with torch.no_grad():
        yield


def paint(pipe: Any, call: Call, seed: int) -> Tensor:
    how = {"generator": torch.Generator().manual_seed(seed), "output_type": "latent"}
    result: Tensor = pipe(**call, **how, num_inference_steps=STEPS, return_dict=False)[0]
    return torch.stack(result) if isinstance(result, list) else result


@pytest.mark.parametrize("case", [wan, qwen_image, z_image, flux2, ltx])
@pytest.mark.filterwarnings("ignore")
def test_two_pictures_reuse_plans_and_compile_once(case: Callable[[], Case]) -> None:
    pipe, call, calls = case()
    plain = paint(pipe, call(0), seed=0)
    apply(pipe, TokenMergingConfig(**CONFIG), options={"inner_backend": "eager"})
    first = paint(pipe, call(0), seed=0)
    with torch._dynamo.config.patch(error_on_recompile=True):
        other = paint(pipe, call(1), seed=1)
        again = paint(pipe, call(0), seed=0)
    assert torch.equal(again, first)
    assert not torch.equal(other, first)
    change = float((first - plain).norm() / plain.norm())
    assert 1e-4 < change < 0.5
    (row,) = status(pipe).graphs
    assert (row.state, row.steps) == ("merged", STEPS)
    stats = reuse_stats(pipe.transformer)
    assert stats.steps == 3 * STEPS
    selections = -(-STEPS // STEPS_A_PLAN)
    assert stats.selections == 3 * selections * calls
    assert stats.reuses == 3 * (STEPS - selections) * calls
    remove(pipe)
    assert torch.equal(paint(pipe, call(0), seed=0), plain)
