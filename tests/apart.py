"""A denoiser of small blocks that are compiled apart, as `compile_repeated_blocks` does it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import toma_fx
from tests.tiny import seeded

TOKENS, CHANNELS = 64, 16
OPTIONS: dict[str, Any] = {
    "inner_backend": "eager",
    "regions": "all",
    "order": "stripe",
    "window": 4,
    "min_tokens": 16,
    "scope": "region",
    "select_every": 3,
    "weigh_every": 2,
}


class Block(nn.Module):
    """Sees an embedding of the step, and no step."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(CHANNELS), nn.LayerNorm(CHANNELS)
        self.into, self.out = nn.Linear(CHANNELS, 32), nn.Linear(32, CHANNELS)

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        for entry in self.entries(shift):
            x = x + self.mlp(entry(x))
        return x

    def entries(self, shift: Tensor) -> tuple[Callable[[Tensor], Tensor], ...]:
        """What its two MLPs see."""
        return lambda x: self.norm1(x) * (1 + shift), self.norm2

    def mlp(self, x: Tensor) -> Tensor:
        return self.out(torch.nn.functional.gelu(self.into(x)))


class Denoiser(nn.Module):
    """Blocks in two lists.

    Attributes:
        skipped: blocks that a call leaves out, as a cache would.
    """

    def __init__(self, seed: int = 0, lists: tuple[int, int] = (2, 1)) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.clock, self.words = nn.Linear(8, CHANNELS), nn.Linear(6, CHANNELS)
        self.blocks, self.others = (nn.ModuleList(Block() for _ in range(n)) for n in lists)
        self.skipped: set[nn.Module] = set()
        self.eval()

    def forward(self, hidden: Tensor, timestep: Tensor, prompt: Tensor) -> Tensor:
        shift = self.shift(timestep, prompt)
        for block in (*self.blocks, *self.others):
            if block not in self.skipped:
                hidden = block(hidden, shift)
        return hidden

    def shift(self, timestep: Tensor, prompt: Tensor) -> Tensor:
        angle = timestep.reshape(-1, 1).float() * 10.0 ** -torch.arange(4)
        clock = self.clock(torch.cat((angle.sin(), angle.cos()), -1))
        return (clock + 2 * self.words(prompt)).unsqueeze(1)


def call(step: int, picture: int = 0, prompt: int = 0, steps: int = 10) -> tuple[Tensor, ...]:
    """Of a picture: other noise at each step, and a time that falls."""
    noise = seeded(100 * picture + step, 1, TOKENS, CHANNELS)
    return noise, torch.tensor(float(steps - step)), seeded(1000 + prompt, 1, 6)


def picture(number: int = 0, prompt: int = 0, steps: int = 10) -> list[tuple[Tensor, ...]]:
    return [call(step, number, prompt, steps) for step in range(steps)]


def apart(model: Denoiser, follow: bool = True, **options: Any) -> Denoiser:
    """The same model, each of its blocks compiled."""
    torch._dynamo.reset()
    compile_blocks(model, **options)
    if follow:
        toma_fx.follow(model)
    return model


def compile_blocks(model: Denoiser, **options: Any) -> None:
    for block in (*model.blocks, *model.others):
        block.compile(backend="toma", fullgraph=True, options={**OPTIONS, **options})


def run(model: nn.Module, calls: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
    return [model(*given) for given in calls]
