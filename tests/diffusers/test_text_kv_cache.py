"""TextKVCache of diffusers keeps what blocks make of the text, and loses nothing by it.

It is for one model alone, NucleusMoE-Image: its blocks are merged as they are without the cache.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import hooks
from torch import Tensor

import toma_fx
from tests.diffusers.door import fresh, no_recompile
from tests.diffusers.test_caches import METHODS, STEPS, distance, merged
from toma_fx import reuse_stats
from toma_fx.diffusers import remove, status

Config: Any = getattr(hooks, "TextKVCacheConfig", None)  # of diffusers 0.38 and newer
if Config is None:
    pytest.skip("this diffusers has no TextKVCache", allow_module_level=True)

__all__ = ["fresh"]  # the fixture of these tests

SIDE = 8


def nucleus() -> Any:
    """Three blocks without experts, whose choice of tokens no merging would survive."""
    from diffusers import NucleusMoEImageTransformer2DModel

    torch.manual_seed(0)
    sizes = {"num_layers": 3, "attention_head_dim": 16, "num_attention_heads": 2}
    more = {"joint_attention_dim": 32, "axes_dims_rope": (4, 6, 6), "mlp_ratio": 8.0}
    sizes |= {"in_channels": 16, "out_channels": 4}
    model = NucleusMoEImageTransformer2DModel(moe_enabled=False, **sizes, **more)
    return model.eval()


def prompt(seed: int) -> Tensor:
    return torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(seed))


def generation(model: Any, text: Tensor) -> Tensor:
    """A picture; text is the same tensor at every step, by which the cache knows it."""
    latents = torch.randn(1, SIDE * SIDE, 16, generator=torch.Generator().manual_seed(9))
    for step in range(STEPS):
        time = torch.full((1,), 0.98 - step * 0.9 / STEPS)
        given = {"hidden_states": latents, "timestep": time, "encoder_hidden_states": text}
        latents = latents - 0.9 / STEPS * model(img_shapes=[(1, SIDE, SIDE)], **given)[0]
    return latents


def counted(model: Any) -> list[int]:
    """How often each block made keys of text."""
    counts = [0] * len(model.transformer_blocks)

    def count(place: int) -> Any:
        def run(*_: Any) -> None:
            counts[place] += 1

        return run

    for place, block in enumerate(model.transformer_blocks):
        block.attn.add_k_proj.register_forward_hook(count(place))
    return counts


def test_the_cache_alone_makes_text_once() -> None:
    model, text = nucleus(), prompt(1)
    plain = generation(model, text)
    counts = counted(model)
    model.enable_cache(Config())
    assert torch.allclose(generation(model, text), plain, atol=1e-6)
    assert counts == [1] * len(counts)


@pytest.mark.parametrize("method", METHODS)
def test_blocks_merge_with_it_as_without(method: str) -> None:
    model, texts = nucleus(), (prompt(1), prompt(2))
    plain = generation(model, texts[0])
    merged(model, method)
    wanted = []
    for text in texts:
        toma_fx.reset(model)
        wanted.append(generation(model, text))
    assert distance(wanted[0], plain) > 1e-5
    remove(model)
    model.enable_cache(Config())
    merged(model, method)
    for text, without in zip(texts, wanted, strict=True):
        toma_fx.reset(model)
        assert distance(generation(model, text), without) < 1e-5
    with no_recompile():
        toma_fx.reset(model)
        assert distance(generation(model, texts[0]), wanted[0]) < 1e-5
    assert [graph.state for graph in status(model).graphs] == ["merged"]
    if method in ("toma", "refresh"):
        assert reuse_stats(model).steps == 3 * STEPS
    remove(model)
    assert distance(generation(model, texts[0]), plain) < 1e-6


def test_text_is_made_on_the_host_and_reaches_the_merged_block() -> None:
    """Another text under the same latents is another picture: what is cached is what is read."""
    model, texts = nucleus(), (prompt(1), prompt(2))
    model.enable_cache(Config())
    counts = counted(model)
    merged(model, "toma")
    found = [generation(model, text) for text in texts]
    assert counts == [len(texts)] * len(counts)
    assert distance(*found) > 1e-4
