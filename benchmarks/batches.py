"""Batches of emoji for training: placed at random on a plain pale ground, captions now and then
without a word, or without any.

What varies is what a seed will choose: place, size and the colour of the ground. Without it two
seeds of one caption would be one picture.
"""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.data import Emoji
from toma_fx.demo.generators.captions import split

_SMALLEST, _SHIFT, _PALE = 0.85, 0.08, 0.3


def draw(
    emoji: Emoji, count: int, drop: float, generator: torch.Generator
) -> tuple[Tensor, list[str]]:
    """Pictures `[count, 3, side, side]` in [-1, 1] and their captions.

    Args:
        emoji: what to draw from.
        count: of the batch.
        drop: share of captions that are left out altogether, for guidance.
        generator: decides everything.
    """
    chosen = torch.randint(len(emoji.captions), (count,), generator=generator)
    pictures = place(emoji.pictures[chosen].float() / 255, generator)
    words = random.Random(int(torch.randint(2**31, (), generator=generator)))
    captions = [shorten(emoji.captions[i], drop, words) for i in chosen.tolist()]
    return pictures, captions


def place(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Put pictures `[B, 4, side, side]`, premultiplied, on grounds: `[B, 3, side, side]`."""
    count = len(pictures)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator)

    scale = 1 / (_SMALLEST + (1 - _SMALLEST) * uniform())
    shift = (2 * uniform(2) - 1) * _SHIFT
    move = torch.zeros(count, 2, 3)
    move[:, 0, 0] = move[:, 1, 1] = scale
    move[:, :, 2] = shift
    grid = F.affine_grid(move, list(pictures.shape), align_corners=False)
    moved = F.grid_sample(pictures, grid, align_corners=False)
    ground = (1 - _PALE * uniform(3))[..., None, None]
    return (moved[:, :3] + (1 - moved[:, 3:]) * ground).clamp(0, 1) * 2 - 1


def shorten(caption: str, drop: float, words: random.Random, lose: float = 0.2) -> str:
    """Nothing, or the caption; of a long one, now and then without some of its words."""
    if words.random() < drop:
        return ""
    kept = split(caption)
    if len(kept) > 2:
        kept = [word for word in kept if words.random() > lose] or kept
    return " ".join(kept)
