"""A photograph as tokens: merged and restored, so that one can see what merging keeps.

Patches of the photograph play the hidden states; nothing else differs from what happens inside
a model. The reference mathematics selects, merges and unmerges them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from toma_fx import reference
from toma_fx.config import TomaConfig
from toma_fx.demo.errors import require
from toma_fx.order import tile_order
from toma_fx.windows import cut


@dataclass(frozen=True)
class Patches:
    """A picture, cut into patches that stand tile by tile.

    Attributes:
        picture: `[height, width, 3]` in [0, 1], cropped to whole tiles.
        side: of a patch, in pixels.
        window: side of a tile, in patches.
        grid: height and width in patches.
        order: `[N]` int64, the patch in each slot.
        pixels: `[W, n, 3·side²]`: the tokens, window by window.
    """

    picture: Tensor
    side: int
    window: int
    grid: tuple[int, int]
    order: Tensor
    pixels: Tensor


@dataclass(frozen=True)
class Restored:
    """A picture after merging and unmerging.

    Attributes:
        ratio: share of patches removed.
        kept: patches left.
        chosen: `[grid height, grid width]` bool: the destinations.
        picture: `[height, width, 3]` in [0, 1].
        quality: peak signal-to-noise ratio in dB; a larger value is closer to the original.
        random_quality: the same with destinations drawn at random.
    """

    ratio: float
    kept: int
    chosen: Tensor
    picture: Tensor
    quality: float
    random_quality: float


def photograph() -> Tensor:
    """`[512, 512, 3]` float32 in [0, 1]: the astronaut Eileen Collins (NASA, public domain).

    The picture is inside scikit-image's wheel; nothing is downloaded.

    Raises:
        DemoError: scikit-image is not installed.
    """
    require("skimage")
    import skimage.data

    return torch.from_numpy(skimage.data.astronaut()).float() / 255


def cut_patches(picture: Tensor, side: int = 8, window: int = 8) -> Patches:
    """Cut a picture into patches, in tiles.

    Args:
        picture: `[height, width, 3]` in [0, 1]; cropped at the right and the bottom to whole tiles.
        side: of a patch, in pixels. A larger value gives fewer, coarser tokens.
        window: side of a tile, in patches. A larger value finds better destinations and costs
            the square of the patches a tile.

    Raises:
        ValueError: the picture is smaller than one tile.
    """
    tile = side * window
    height, width = (length // tile * tile for length in picture.shape[:2])
    if not height or not width:
        raise ValueError(f"the picture is smaller than one tile of {tile} x {tile} pixels")
    picture = picture[:height, :width]
    grid = (height // side, width // side)
    tokens = picture.view(grid[0], side, grid[1], side, 3).permute(0, 2, 1, 3, 4)
    order = tile_order(grid, window)
    pixels = tokens.reshape(-1, 3 * side * side)[order].view(-1, window * window, 3 * side * side)
    return Patches(picture, side, window, grid, order, pixels)


def restore(patches: Patches, ratio: float) -> Restored:
    """Select destinations, merge to them, and unmerge to the full picture.

    Args:
        patches: from `cut_patches`.
        ratio: share of patches removed in every window, in [0, 1). A larger value costs detail.
    """
    count, size, _ = patches.pixels.shape
    windows = cut(count * size, size, ratio)
    features = _features(patches.pixels)
    picks = reference.select_destinations(features, windows.destinations)
    noise = torch.rand(count, size, generator=torch.Generator().manual_seed(0))
    drawn = noise.argsort(-1)[:, : windows.destinations].sort(-1).values
    picture = _merge_and_unmerge(patches, features, picks)
    return Restored(
        ratio=ratio,
        kept=windows.merged,
        chosen=_chosen(patches, picks),
        picture=picture,
        quality=_quality(picture, patches.picture),
        random_quality=_quality(_merge_and_unmerge(patches, features, drawn), patches.picture),
    )


def _features(pixels: Tensor) -> Tensor:
    """Pixels around zero, and a constant of equal weight: cosines then tell dark from bright.

    Without it a grey patch and a black one point the same way. Inside a model the norm before
    each region sees to that.
    """
    constant = pixels.new_full((*pixels.shape[:2], 1), math.sqrt(pixels.shape[-1]))
    return torch.cat((2 * pixels - 1, constant), -1)


def _merge_and_unmerge(patches: Patches, features: Tensor, destinations: Tensor) -> Tensor:
    weights = reference.assignment(features, destinations, TomaConfig().temperature)
    restored = reference.unmerge(reference.merge(patches.pixels, weights), weights)
    return _assemble(patches, restored)


def _assemble(patches: Patches, pixels: Tensor) -> Tensor:
    """`[W, n, 3·side²]` back to `[height, width, 3]`: the inverse of `cut_patches`."""
    (rows, columns), side = patches.grid, patches.side
    tokens = torch.empty(rows * columns, pixels.shape[-1])
    tokens[patches.order] = pixels.reshape(rows * columns, -1)
    return (
        tokens.view(rows, columns, side, side, 3)
        .permute(0, 2, 1, 3, 4)
        .reshape(rows * side, columns * side, 3)
        .clamp(0, 1)
    )


def _chosen(patches: Patches, destinations: Tensor) -> Tensor:
    slots = torch.zeros(patches.pixels.shape[:2], dtype=torch.bool).scatter_(1, destinations, True)
    chosen = torch.empty(slots.numel(), dtype=torch.bool)
    chosen[patches.order] = slots.view(-1)
    return chosen.view(patches.grid)


def _quality(picture: Tensor, original: Tensor) -> float:
    error = float((picture - original).double().square().mean())
    return math.inf if error == 0 else -10 * math.log10(error)
