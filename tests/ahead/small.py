"""The smallest model that merges, and how the tests export: shared by fixtures and processes."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toma_fx import TomaConfig

FIELDS: dict[str, Any] = {
    "regions": "all",
    "window": 4,
    "min_tokens": 16,
    "select_every": 4,
    "weigh_every": 2,
}
CONFIG = TomaConfig(**FIELDS)


class Small(nn.Module):
    """One block over a picture `[B, 4, H, W]`: self-attention and an MLP, timed by an embedding."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lift, self.lower = nn.Linear(4, channels), nn.Linear(channels, 4)
        self.clock = nn.Linear(8, channels)
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv, self.join = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.widen, self.narrow = nn.Linear(channels, 32), nn.Linear(32, channels)
        self.eval()

    def forward(self, sample: Tensor, timestep: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        angle = timestep.reshape(-1, 1) * 10.0 ** -torch.arange(4)
        clock = self.clock(torch.cat((angle.sin(), angle.cos()), -1)).unsqueeze(1)
        x = self.lift(sample.flatten(2).transpose(1, 2))
        entry = self.norm1(x) * (1 + clock)
        parts = (p.unflatten(-1, (2, -1)).transpose(1, 2) for p in self.qkv(entry).chunk(3, -1))
        x = x + self.join(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))
        x = x + self.narrow(F.gelu(self.widen(self.norm2(x)))) * scale
        return {"noise": self.lower(x).transpose(1, 2).reshape(sample.shape)}


def small_call(height: int = 8, width: int = 8, step: int = 0, picture: int = 0) -> dict[str, Any]:
    """Keyword arguments of one of ten steps of a picture."""
    generator = torch.Generator().manual_seed(100 * picture + step)
    sample = torch.randn(1, 4, height, width, generator=generator)
    return {"sample": sample, "timestep": torch.tensor([10.0 - step])}


def relative(result: Tensor, expected: Tensor) -> float:
    error = float((result.double() - expected.double()).norm() / expected.double().norm())
    return error if math.isfinite(error) else math.inf
