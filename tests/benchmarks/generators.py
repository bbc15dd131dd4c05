"""Generators of a few thousand parameters, 16 tokens, for tests of what surrounds them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from toma_fx.demo.generators import NAMES, Generator, build, models

SIZE = "tiny"
CAPTIONS = ["red apple", "smiling cat", "banana", "rose"]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make both generators known in a size of 16 × 16 pixels."""
    unet = {
        **models._CONFIGS["emoji-sdxl", "small"][2],
        "block_out_channels": (16, 16),
        "attention_head_dim": (1, 2),
        "norm_num_groups": 8,
    }
    flux = {
        **models._CONFIGS["emoji-flux", "small"][2],
        "num_layers": 1,
        "num_single_layers": 3,  # of which the last is merged
        "attention_head_dim": 16,
        "num_attention_heads": 1,
        "axes_dims_rope": (4, 6, 6),
    }
    monkeypatch.setitem(models._CONFIGS, ("emoji-sdxl", SIZE), (16, 2, unet))
    monkeypatch.setitem(models._CONFIGS, ("emoji-flux", SIZE), (16, 4, flux))


def weights(name: str, folder: Path) -> Path:
    """Random weights as a file."""
    torch.manual_seed(0)
    file = folder / f"{name}.safetensors"
    state = build(name, SIZE).model.state_dict()
    save_file({key: value.half().contiguous() for key, value in state.items()}, file)
    return file


def random(name: str) -> Generator:
    torch.manual_seed(0)
    generator = build(name, SIZE)
    generator.model.eval().requires_grad_(False)
    return generator


__all__ = ["CAPTIONS", "NAMES", "SIZE", "install", "random", "weights"]
