"""What the tests of the door share: options, counts, and a model that compiles in a moment."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers.utils.peft_utils import apply_lora_scale
from torch import Tensor, nn

from toma_fx.diffusers import TokenMergingConfig, status

SMALL: dict[str, Any] = {"regions": "all", "window": 4, "min_tokens": 64}
EAGER: dict[str, Any] = {"options": {"inner_backend": "eager"}}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Nothing compiled before, nor counted; no warnings, no gradients."""
    torch._dynamo.reset()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        yield
    torch._dynamo.reset()


@contextmanager
def no_recompile() -> Iterator[None]:
    before = graphs()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    assert graphs() == before


def graphs() -> int:
    """Compiled in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def compiles() -> int:
    """Merged graphs among them."""
    return int(torch._dynamo.utils.counters["toma_fx"]["graphs_rewritten"])


def config(**changes: Any) -> TokenMergingConfig:
    return TokenMergingConfig(**{**SMALL, **changes})


def ran(target: object) -> dict[str, int]:
    """Steps of the latest picture by graph, without those that did not run."""
    found: dict[str, int] = {}
    for graph in status(target).graphs:
        if graph.steps:
            found[graph.graph] = found.get(graph.graph, 0) + graph.steps
    return found


class Fold(nn.Module):
    """One feed-forward on a folded picture, behind the wrapper that diffusers' models share."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.norm = nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.clock = nn.Linear(8, 16)
        self.eval()

    @apply_lora_scale("joint_attention_kwargs")
    def forward(self, sample: Tensor, timestep: Any = 1) -> Tensor:
        return self.fold(sample, timestep)

    def fold(self, sample: Tensor, timestep: Any) -> Tensor:
        time = timestep if isinstance(timestep, Tensor) else torch.tensor([timestep])
        angle = time.reshape(-1, 1).float() * 10.0 ** -torch.arange(4)
        hidden = sample.flatten(2).transpose(1, 2)
        hidden = hidden + self.clock(torch.cat((angle.sin(), angle.cos()), -1)).unsqueeze(1)
        hidden = hidden + self.down(torch.relu(self.up(self.norm(hidden))))
        return hidden.transpose(1, 2).reshape(sample.shape)


class Other(Fold):
    """Another class of model, which shares no code but the wrapper."""

    @apply_lora_scale("joint_attention_kwargs")
    def forward(self, sample: Tensor, timestep: Any = 1) -> Tensor:
        return -self.fold(sample, timestep)


def picture(width: int = 16, seed: int = 0, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 16, 16, width, generator=generator)
