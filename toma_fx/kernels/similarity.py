"""Cosine similarity within windows, gathered through the token order: `[P, n, n]` float32.

Each program makes one tile on or above the diagonal of one window and writes it twice, mirrored.
So the result is symmetric to the last bit, which halves the work and lets the greedy kernels read
a column as a row. Products and norms are summed in one pass over the channels; the products in
IEEE float32, since TF32 would change which destinations win.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from toma_fx.kernels.launch import wrap_triton


@triton.jit
def _tokens(
    order: tl.tensor,
    slots: tl.tensor,
    window: tl.tensor,
    size: tl.constexpr,
    ordered: tl.constexpr,
) -> tl.tensor:
    """Which token of the item each slot of a window holds."""
    tokens = (window * size + slots).to(tl.int64)
    if ordered:
        tokens = tl.load(order + tokens, mask=slots < size, other=0)
    return tokens


@triton.jit
def _norms(squares: tl.tensor) -> tl.tensor:
    """Row norms from `[block, depth]` sums of squares, with the floor of `F.normalize`."""
    return tl.maximum(tl.sqrt_rn(tl.sum(squares, 1)), 1e-12)


@triton.jit
def _cosines(
    item: tl.tensor,
    row_tokens: tl.tensor,
    column_tokens: tl.tensor,
    row_mask: tl.tensor,
    column_mask: tl.tensor,
    token_stride: tl.int64,
    channel_stride: tl.int64,
    channels: tl.constexpr,
    block: tl.constexpr,
    depth: tl.constexpr,
) -> tl.tensor:
    """`[block, block]` cosines between two runs of tokens of one item."""
    products = tl.zeros([block, block], tl.float32)
    row_squares = tl.zeros([block, depth], tl.float32)
    column_squares = tl.zeros([block, depth], tl.float32)
    row_address = item + row_tokens[:, None] * token_stride
    column_address = item + column_tokens[:, None] * token_stride
    for start in range(0, channels, depth):
        channel = start + tl.arange(0, depth)[None, :]
        inside = channel < channels
        offset = channel * channel_stride
        rows = tl.load(row_address + offset, mask=row_mask[:, None] & inside, other=0.0)
        columns = tl.load(column_address + offset, mask=column_mask[:, None] & inside, other=0.0)
        rows = rows.to(tl.float32)
        columns = columns.to(tl.float32)
        products = tl.dot(rows, tl.trans(columns), products, input_precision="ieee")
        row_squares += rows * rows
        column_squares += columns * columns
    lengths = _norms(row_squares)[:, None] * _norms(column_squares)[None, :]
    return tl.div_rn(products, lengths)


@triton.jit
def similarity_kernel(
    hidden: tl.tensor,
    order: tl.tensor,
    phase: tl.tensor,
    similarities: tl.tensor,
    windows: tl.int32,
    batch_stride: tl.int64,
    token_stride: tl.int64,
    channel_stride: tl.int64,
    size: tl.constexpr,
    channels: tl.constexpr,
    ordered: tl.constexpr,
    block: tl.constexpr,
    depth: tl.constexpr,
) -> None:
    """Grid `(P, ⌈size / block⌉, ⌈size / block⌉)`; nothing to do in phase 0."""
    due = tl.load(phase) != 0
    if due & (tl.program_id(1) <= tl.program_id(2)):
        index = tl.program_id(0)
        rows = tl.program_id(1) * block + tl.arange(0, block)
        columns = tl.program_id(2) * block + tl.arange(0, block)
        cosines = _cosines(
            hidden + (index // windows) * batch_stride,
            _tokens(order, rows, index % windows, size, ordered),
            _tokens(order, columns, index % windows, size, ordered),
            rows < size,
            columns < size,
            token_stride,
            channel_stride,
            channels,
            block,
            depth,
        )
        window = similarities + index.to(tl.int64) * (size * size)
        above = (rows[:, None] <= columns[None, :]) & (columns[None, :] < size)
        tl.store(window + rows[:, None] * size + columns[None, :], cosines, mask=above)
        tl.store(window + columns[None, :] * size + rows[:, None], cosines, mask=above)


def similarity_options(size: int) -> dict[str, int]:
    """Compile-time sizes of `similarity_kernel` for windows of `size` tokens.

    Tiles of 32 give a window of 64 tokens three programs, so that 128 windows fill a large GPU.
    """
    return {"size": size, "block": 16 if size <= 16 else 32, "depth": 32}


def launch_similarity(
    hidden: Tensor, order: Tensor | None, phase: Tensor, similarities: Tensor, windows: int
) -> None:
    """Write the similarities of every window, unless `phase` is 0.

    Args:
        hidden: `[B, N, C]` float32, bfloat16 or float16, any strides.
        order: `[W·n]` int64, the token in each slot; None if slot `i` holds token `i`.
        phase: int32 scalar on the device of `hidden`.
        similarities: `[B·W, n, n]` float32, contiguous; overwritten. Symmetric to the last bit.
        windows: `W`, windows of one item.
    """
    count, size, _ = similarities.shape
    options = similarity_options(size)
    tiles = triton.cdiv(size, options["block"])
    wrap_triton(similarity_kernel)[(count, tiles, tiles)](
        hidden,
        phase if order is None else order,  # not read without an order
        phase,
        similarities,
        windows,
        *hidden.stride(),
        channels=hidden.shape[2],
        ordered=order is not None,
        **options,
    )
