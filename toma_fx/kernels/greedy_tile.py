"""Greedy selection with the window's integer similarities on chip: for small windows.

One program a selection. Its tile, `[items · n, n]` int32, stays in registers from the first pick
to the last: 16 KiB for 64 tokens, 32 KiB for a pair of them. A pick is one pass over the tile.
Rows are what is covered and columns are candidates, so that most of each gain's sum stays within
a thread; the similarities are symmetric, so a window's row is read either way.
"""

from __future__ import annotations

import triton
import triton.language as tl

from toma_fx.kernels.units import best, first_pick, load_units, store_picks


@triton.jit
def greedy_tile_kernel(
    similarities: tl.tensor,
    phase: tl.tensor,
    slot: tl.tensor,
    destinations: tl.tensor,
    groups: tl.int32,
    windows: tl.int32,
    pads: tl.int32,
    size: tl.constexpr,
    count: tl.constexpr,
    lanes: tl.constexpr,
    items: tl.constexpr,
    slotted: tl.constexpr,
) -> None:
    """Grid `(groups,)`; nothing to do but in phase 2. `lanes`: `size` as a power of two.

    `slotted`: `slot` int64 says which of several plans is written.
    """
    if tl.load(phase) == 2:
        group = tl.program_id(0).to(tl.int64)
        padded = tl.program_id(0) % windows >= windows - pads
        candidates, rows, slots, state, covered = first_pick(padded, size, lanes, items)
        window = similarities + (group + (rows // lanes) * groups) * (size * size)
        units = load_units(
            (window + slots * size)[:, None] + candidates[None, :],
            slots[:, None] == candidates[None, :],
            (slots < size)[:, None] & (candidates < size)[None, :],
        )
        for _ in range(count):
            gains = tl.sum(tl.maximum(units - covered[:, None], 0), 0)
            pick = best(gains, state)
            state = tl.where(candidates == pick, 2, state)
            row = load_units(window + pick * size + slots, slots == pick, slots < size)
            covered = tl.maximum(covered, row)
        if slotted:
            destinations += tl.load(slot) * tl.num_programs(0) * (items * count)
        store_picks(destinations, candidates, state, group, groups, count, items)
