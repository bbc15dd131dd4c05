"""Small denoisers of diffusers with a plan of their own for sharding, and calls of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    ContextParallelConfig,
    FluxTransformer2DModel,
    LTXVideoTransformer3DModel,
    QwenImageTransformer2DModel,
    WanTransformer3DModel,
)
from torch import nn

from tests.zoo.entries import alive, noise, positions

HEADS, HEAD, WORDS = 4, 8, 8
ROWS, COLUMNS, FRAMES = 16, 8, 2
"""Four ranks have four rows each, and windows of four divide them."""
TOKENS = ROWS * COLUMNS
_SIZES = {"num_attention_heads": HEADS, "attention_head_dim": HEAD}
_AXES = {"axes_dims_rope": (2, 2, 4)}


@dataclass
class Made:
    """A model and one call of it; `step` is the same call at another time."""

    model: nn.Module
    given: dict[str, Any]

    def step(self, time: float) -> dict[str, Any]:
        return {**self.given, "timestep": torch.full_like(self.given["timestep"], time)}


def flux(words: int = WORDS) -> Made:
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        **_SIZES,
        **_AXES,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        joint_attention_dim=12,
        pooled_projection_dim=8,
    )
    return Made(
        alive(model).eval(),
        {
            "hidden_states": noise(1, TOKENS, 4),
            "encoder_hidden_states": noise(1, words, 12),
            "pooled_projections": noise(1, 8),
            "timestep": torch.full((1,), 0.5),
            "img_ids": positions(ROWS, COLUMNS),
            "txt_ids": torch.zeros(words, 3),
            "return_dict": False,
        },
    )


def qwen() -> Made:
    torch.manual_seed(0)
    model = QwenImageTransformer2DModel(
        **_SIZES,
        **_AXES,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        joint_attention_dim=12,
        patch_size=1,
    )
    return Made(
        alive(model).eval(),
        {
            "hidden_states": noise(1, TOKENS, 4),
            "encoder_hidden_states": noise(1, WORDS, 12),
            "timestep": torch.full((1,), 0.5),
            "img_shapes": [[(1, ROWS, COLUMNS)]],
            "return_dict": False,
        },
    )


def wan() -> Made:
    """Two videos, whose text every rank has whole."""
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        **_SIZES,
        in_channels=4,
        out_channels=4,
        text_dim=12,
        freq_dim=8,
        ffn_dim=32,
        num_layers=1,
        rope_max_seq_len=32,
    )
    return Made(
        alive(model).eval(),
        {
            "hidden_states": noise(2, 4, FRAMES, 2 * ROWS, 2 * COLUMNS),
            "encoder_hidden_states": noise(2, WORDS, 12),
            "timestep": torch.full((2,), 500.0),
            "return_dict": False,
        },
    )


def ltx(masked: bool = False) -> Made:
    """Two videos; with a mask of its text no attention of diffusers' runs sharded."""
    torch.manual_seed(0)
    model = LTXVideoTransformer3DModel(
        **_SIZES,
        in_channels=4,
        out_channels=4,
        cross_attention_dim=HEADS * HEAD,
        caption_channels=12,
        num_layers=1,
    )
    return Made(
        alive(model).eval(),
        {
            "hidden_states": noise(2, FRAMES * TOKENS, 4),
            "encoder_hidden_states": noise(2, WORDS, 12),
            "encoder_attention_mask": torch.ones(2, WORDS) if masked else None,
            "timestep": torch.full((2,), 500.0),
            "num_frames": FRAMES,
            "height": ROWS,
            "width": COLUMNS,
            "return_dict": False,
        },
    )


MODELS: dict[str, Callable[[], Made]] = {"flux": flux, "qwen": qwen, "wan": wan, "ltx": ltx}
ULYSSES, RING, UNIFIED = "ulysses", "ring", "unified"
"""How attention meets the tokens of other ranks; the last does both, on four of them."""


def degrees(way: str, ranks: int) -> dict[str, int]:
    """Of `ContextParallelConfig`."""
    ring = {ULYSSES: 1, RING: ranks, UNIFIED: 2}[way]
    return {"ulysses_degree": ranks // ring, "ring_degree": ring}


def shard(model: Any, ranks: int, way: str = ULYSSES, **more: Any) -> None:
    """As diffusers does it, but for Wan's timestep: its hook warns of it, which breaks the graph.

    Without an axis of tokens nothing of it is cut anyway.
    """
    plan = dict(model._cp_plan)
    if "timestep" in plan.get("", {}):
        del plan[""]
    config = ContextParallelConfig(**degrees(way, ranks), **more)
    model.enable_parallelism(config=config, cp_plan=plan)
