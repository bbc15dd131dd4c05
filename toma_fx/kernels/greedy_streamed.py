"""Greedy selection that reads similarities from memory as it needs them: for large windows.

The integer similarities of 256 tokens fill a whole register file, those of a pair two, and 18
bits do not pack into 16. Instead the gains are kept, exactly, and corrected. A pick changes the
gains only through the slots that it represents better than all picks before, and on average those
are few: about `n / t` at pick `t`. So a pick reads its own row and, `chunk` at a time, the rows of
the slots whose coverage rose. The workspace stays in the L2 cache, and a row is read whole.

Counted on random and smooth tokens: about 7 rows a pick for 128 of 256, where a pass over the
window reads 256. The worst case is all of them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from toma_fx.kernels.units import ONE, best, first_coverage, first_pick, load_units, store_picks


@triton.jit
def _rows(
    similarities: tl.tensor,
    rows: tl.tensor,
    present: tl.tensor,
    candidates: tl.tensor,
    group: tl.tensor,
    groups: tl.int32,
    size: tl.constexpr,
    lanes: tl.constexpr,
) -> tl.tensor:
    """`[chunk, lanes]` integer similarities of the given rows, items one after the other."""
    slots = rows % lanes
    window = similarities + (group + (rows // lanes) * groups) * (size * size)
    return load_units(
        (window + slots * size)[:, None] + candidates[None, :],
        slots[:, None] == candidates[None, :],
        present[:, None] & (candidates < size)[None, :],
    )


@triton.jit
def _column(
    similarities: tl.tensor,
    rows: tl.tensor,
    present: tl.tensor,
    pick: tl.tensor,
    group: tl.tensor,
    groups: tl.int32,
    size: tl.constexpr,
    lanes: tl.constexpr,
) -> tl.tensor:
    """Integer similarities between a pick and the given rows."""
    slots = rows % lanes
    window = similarities + (group + (rows // lanes) * groups) * (size * size)
    return load_units(window + pick * size + slots, slots == pick, present)


@triton.jit
def _first_gains(
    similarities: tl.tensor,
    candidates: tl.tensor,
    group: tl.tensor,
    groups: tl.int32,
    padded: tl.tensor,
    size: tl.constexpr,
    lanes: tl.constexpr,
    items: tl.constexpr,
    chunk: tl.constexpr,
) -> tl.tensor:
    """`[lanes]` gains before the first pick: one pass over the whole window."""
    gains = tl.zeros([lanes], tl.int32)
    for start in range(0, items * lanes, chunk):
        rows = start + tl.arange(0, chunk)
        covered = first_coverage(rows % lanes, size, padded)
        units = _rows(similarities, rows, covered < ONE, candidates, group, groups, size, lanes)
        gains += tl.sum(tl.maximum(units - covered[:, None], 0), 0)
    return gains


@triton.jit
def greedy_streamed_kernel(
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
    chunk: tl.constexpr,
    slotted: tl.constexpr,
) -> None:
    """Grid `(groups,)`; nothing to do but in phase 2. `lanes`: `size` as a power of two.

    `slotted`: `slot` int64 says which of several plans is written.
    """
    if tl.load(phase) == 2:
        group = tl.program_id(0).to(tl.int64)
        padded = tl.program_id(0) % windows >= windows - pads
        candidates, rows, slots, state, covered = first_pick(padded, size, lanes, items)
        gains = _first_gains(
            similarities, candidates, group, groups, padded, size, lanes, items, chunk
        )
        for _ in range(count):
            pick = best(gains, state)
            state = tl.where(candidates == pick, 2, state)
            row = _column(similarities, rows, slots < size, pick, group, groups, size, lanes)
            rising = row > covered
            places = tl.where(rising, tl.cumsum(rising.to(tl.int32), 0) - 1, -1)
            # Row and coverage of a rising slot in one number, at most 26 bits: one masked sum
            # brings both to their place in a list without gaps.
            packed = (covered + ONE) * (items * lanes) + rows
            total = tl.sum(rising.to(tl.int32), 0)
            start = 0
            while start < total:
                wanted = start + tl.arange(0, chunk)
                present = wanted < total
                match = places[None, :] == wanted[:, None]
                listed = tl.sum(tl.where(match, packed[None, :], 0), 1)
                row_list = listed % (items * lanes)
                before = listed // (items * lanes) - ONE
                after = _column(similarities, row_list, present, pick, group, groups, size, lanes)
                units = _rows(
                    similarities, row_list, present, candidates, group, groups, size, lanes
                )
                old = tl.maximum(units - before[:, None], 0)
                new = tl.maximum(units - after[:, None], 0)
                gains -= tl.sum(tl.where(present[:, None], old - new, 0), 0)
                start += chunk
            covered = tl.maximum(covered, row)
        if slotted:
            destinations += tl.load(slot) * tl.num_programs(0) * (items * count)
        store_picks(destinations, candidates, state, group, groups, count, items)
