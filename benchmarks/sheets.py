"""Contact sheets: what a generator makes of captions, to be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from toma_fx.demo.generators import Generator, generate

_ACROSS, _CAPTIONS, _SEEDS = 12, 24, 2


def contact_sheet(
    generator: Generator,
    captions: Sequence[str],
    folder: Path,
    step: int,
    guidance: float,
    steps: int = 10,
) -> Path:
    """Captions spread over the data, the same seeds in each half: `sheet-{step}.png`.

    The upper half and the lower are the same captions from two seeds: where a caption means
    something to the generator, they resemble each other.
    """
    apart = max(1, len(captions) // _CAPTIONS)
    chosen = list(captions[::apart][:_CAPTIONS])
    halves = [
        generate(generator, chosen, [1000 * seed + i for i in range(len(chosen))], steps, guidance)
        for seed in range(_SEEDS)
    ]
    file = folder / f"sheet-{step:06d}.png"
    to_image(tiled(torch.cat(halves), _ACROSS)).save(file)
    return file


def tiled(pictures: Tensor, across: int) -> Tensor:
    """`[N, 3, h, w]` as one picture `[3, H, W]`, `across` in a row."""
    missing = -len(pictures) % across
    padded = torch.cat((pictures, pictures.new_ones(missing, *pictures.shape[1:])))
    rows = padded.unflatten(0, (-1, across))
    return rows.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)


def to_image(picture: Tensor) -> Image.Image:
    """`[3, H, W]` in [0, 1]."""
    return Image.fromarray((picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def to_tensor(image: Image.Image) -> Tensor:
    """The inverse of `to_image`."""
    return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1).float() / 255
