"""Merge and unmerge matrices from similarities and destinations.

`A = softmax over destinations of S[destinations, :] / τ`, its columns zero at pads. Unmerging is
`Aᵀ`, merging is `A` with rows that sum to one. One program a window: a first pass over blocks of
columns writes `Aᵀ` and sums the rows, a second one computes `A` anew, which is cheaper than to
keep it, and writes it divided. So the sums have one order, and no result depends on a race.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from toma_fx.kernels.launch import wrap_triton

_LARGEST_BLOCK = 2**13


@triton.jit
def _assignment(
    rows: tl.tensor,
    row_mask: tl.tensor,
    columns: tl.tensor,
    real: tl.tensor,
    temperature: tl.float32,
    size: tl.constexpr,
) -> tl.tensor:
    """`[lanes, block]` softmax over destinations, zero at columns that carry no mass."""
    inside = row_mask[:, None] & (columns < size)[None, :]
    similarities = tl.load(rows[:, None] + columns[None, :], mask=inside, other=0.0)
    logits = tl.where(row_mask[:, None], similarities / temperature, float("-inf"))
    exponentials = tl.exp(logits - tl.max(logits, 0)[None, :])
    weights = exponentials / tl.sum(exponentials, 0)[None, :]
    return tl.where((columns < real)[None, :], weights, 0.0)


@triton.jit
def weights_kernel(
    similarities: tl.tensor,
    phase: tl.tensor,
    slot: tl.tensor,
    destinations: tl.tensor,
    merging: tl.tensor,
    unmerging: tl.tensor,
    windows: tl.int32,
    pads: tl.int32,
    count: tl.int32,
    temperature: tl.float32,
    size: tl.constexpr,
    lanes: tl.constexpr,
    block: tl.constexpr,
    slotted: tl.constexpr,
) -> None:
    """Grid `(P,)`; nothing to do in phase 0. `lanes`: the destinations as a power of two.

    `slotted`: `slot` int64 says which of several plans is read and written.
    """
    if tl.load(phase) != 0:
        if slotted:
            first = tl.load(slot) * tl.num_programs(0) * count
            destinations += first
            merging += first * size
            unmerging += first * size
        index = tl.program_id(0).to(tl.int64)
        padded = tl.program_id(0) % windows >= windows - pads
        real = size - padded.to(tl.int32)
        kept = tl.arange(0, lanes)
        row_mask = kept < count
        picks = tl.load(destinations + index * count + kept, mask=row_mask, other=0)
        rows = similarities + index * (size * size) + picks * size
        sums = tl.zeros([lanes], tl.float32)
        for start in range(0, size, block):
            columns = start + tl.arange(0, block)
            weights = _assignment(rows, row_mask, columns, real, temperature, size)
            sums += tl.sum(weights, 1)
            tl.store(
                unmerging + index * count * size + columns[None, :] * count + kept[:, None],
                weights.to(unmerging.dtype.element_ty),
                mask=row_mask[:, None] & (columns < size)[None, :],
            )
        sums = tl.where(row_mask, sums, 1.0)
        for start in range(0, size, block):
            columns = start + tl.arange(0, block)
            weights = _assignment(rows, row_mask, columns, real, temperature, size)
            tl.store(
                merging + index * count * size + kept[:, None] * size + columns[None, :],
                (weights / sums[:, None]).to(merging.dtype.element_ty),
                mask=row_mask[:, None] & (columns < size)[None, :],
            )


def weights_options(size: int, count: int) -> dict[str, int]:
    """Compile-time sizes of `weights_kernel` for `count` destinations of `size` tokens."""
    lanes = triton.next_power_of_2(count)
    block = min(triton.next_power_of_2(size), max(16, _LARGEST_BLOCK // lanes))
    return {"size": size, "lanes": lanes, "block": block, "num_warps": 8 if lanes > 64 else 4}


def launch_weights(
    similarities: Tensor,
    phase: Tensor,
    destinations: Tensor,
    merging: Tensor,
    unmerging: Tensor,
    pads: int,
    temperature: float,
    slot: Tensor | None = None,
) -> None:
    """Write both matrices of every window, unless `phase` is 0.

    Args:
        similarities: `[B·W, n, n]` float32, contiguous.
        phase: int32 scalar on the same device.
        destinations: `[B, W, d]` int64, contiguous.
        merging: `[B·W, d, n]`, any floating dtype, contiguous; overwritten.
        unmerging: `[B·W, n, d]`, likewise.
        pads: how many windows, the last ones of each item, end in a pad.
        temperature: τ; a larger value blends more destinations into a token.
        slot: int64 `[1]` on the same device, where the three are `[S, …]`.
    """
    total, size, _ = similarities.shape
    windows, count = destinations.shape[-2:]
    wrap_triton(weights_kernel)[(total,)](
        similarities,
        phase,
        phase if slot is None else slot,  # not read without slots
        destinations,
        merging,
        unmerging,
        windows,
        pads,
        count,
        temperature,
        slotted=slot is not None,
        **weights_options(size, count),
    )
