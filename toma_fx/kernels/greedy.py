"""Destinations from similarities: which of the two greedy kernels, and its launch."""

from __future__ import annotations

from typing import Any

import triton
from torch import Tensor

from toma_fx.kernels.greedy_streamed import greedy_streamed_kernel
from toma_fx.kernels.greedy_tile import greedy_tile_kernel
from toma_fx.kernels.launch import wrap_triton

_LARGEST_TILE = 2**14
"""Integers of a tile that stays on chip: 64 KiB, a quarter of a register file."""


def fits_on_chip(size: int, items: int) -> bool:
    """Whether `greedy_tile_kernel` serves windows of `size` tokens, `items` to a selection."""
    return items * triton.next_power_of_2(size) ** 2 <= _LARGEST_TILE


def greedy_options(size: int, count: int, items: int) -> dict[str, int]:
    """Compile-time sizes, and warps, of the kernel that `fits_on_chip` names.

    On chip a thread holds 64 integers of the tile at most, which leaves it registers to compute.
    """
    lanes = triton.next_power_of_2(size)
    options = {"size": size, "count": count, "lanes": lanes, "items": items}
    if fits_on_chip(size, items):
        return {**options, "num_warps": max(1, min(8, items * lanes**2 // 1024))}
    return {**options, "chunk": min(16, lanes), "num_warps": 4 * items, "num_stages": 1}


def launch_greedy(
    similarities: Tensor,
    phase: Tensor,
    destinations: Tensor,
    pads: int,
    pairs: bool,
    slot: Tensor | None = None,
) -> None:
    """Pick the destinations of every window, if `phase` is 2. One launch.

    Args:
        similarities: `[B·W, n, n]` float32, contiguous and symmetric to the last bit.
        phase: int32 scalar on the same device.
        destinations: `[B, W, d]` int64, contiguous; `d` picks a window, ascending. A larger `d`
            costs one pass over the window each.
        pads: how many windows, the last ones of each item, end in a pad.
        pairs: windows `i` and `i + B·W/2` share one selection, their gains added.
        slot: int64 `[1]` on the same device, where `destinations` are `[S, B, W, d]`.
    """
    total, size, _ = similarities.shape
    windows, count = destinations.shape[-2:]
    items = 2 if pairs else 1
    groups = total // items
    arguments: tuple[Any, ...] = (
        similarities,
        phase,
        phase if slot is None else slot,  # not read without slots
        destinations,
        groups,
        windows,
        pads,
    )
    options = {**greedy_options(size, count, items), "slotted": slot is not None}
    if fits_on_chip(size, items):
        wrap_triton(greedy_tile_kernel)[(groups,)](*arguments, **options)
    else:
        wrap_triton(greedy_streamed_kernel)[(groups,)](*arguments, **options)
