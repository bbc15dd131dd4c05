"""Merge and unmerge inside the graph: plain tensor operations, so that Inductor sees through them.

The rewrite traces these functions and inlines them; nothing here is called at run time. Shapes:
`B` items, `L` tokens of which `N` are the picture's, from `start` on; `W` windows of `n` slots
with `d` destinations, `D = W·d`; `C` channels. `order` `[W·n]` lists each slot's token and
`inverse` `[N]` each token's slot; both are None where slots are the tokens in sequence.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from toma_fx.operations import windowed


def merge_tokens(
    hidden: Tensor, merging: Tensor, order: Tensor | None, start: int, length: int
) -> Tensor:
    """`[B, L, C]` to `[B, L − N + D, C]`: the picture's tokens become `D` weighted means."""
    batch, _, channels = hidden.shape
    picture = _picture(hidden, start, length)
    windows = windowed(picture, order, merging.shape[-1])
    merged = torch.bmm(_cast(merging, hidden.dtype), windows).view(batch, -1, channels)
    return between_text(hidden, merged, start, start + length)


def unmerge_tokens(
    merged: Tensor, unmerging: Tensor, inverse: Tensor | None, start: int, length: int
) -> Tensor:
    """`[B, L − N + D, C]` back to `[B, L, C]`; `length` is `D`."""
    batch, _, channels = merged.shape
    picture = _picture(merged, start, length)
    windows = picture.reshape(-1, unmerging.shape[-1], channels)
    slots = torch.bmm(_cast(unmerging, merged.dtype), windows).view(batch, -1, channels)
    tokens = slots if inverse is None else slots.index_select(1, inverse)
    return between_text(merged, tokens, start, start + length)


def change_of(before: Tensor, after: Tensor, start: int, length: int) -> Tensor:
    """`[B, D, C]`: what a run of blocks made of the picture's merged tokens; `length` is `D`."""
    return _picture(after, start, length) - _picture(before, start, length)


def add_change(hidden: Tensor, change: Tensor, after: Tensor, start: int, length: int) -> Tensor:
    """The picture of `hidden` `[B, L, C]` plus its change `[B, N, C]`, between the text of `after`.

    `after` is merged: text that shares the stream stands in it at full length.
    """
    picture = _picture(hidden, start, change.shape[1]) + change
    return between_text(after, picture, start, start + length)


def _cast(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """A cast that changes nothing would be a node all the same, at every region."""
    return matrix if matrix.dtype == dtype else matrix.to(dtype)


def _picture(hidden: Tensor, start: int, length: int) -> Tensor:
    return hidden if length == hidden.shape[1] else hidden.narrow(1, start, length)


def between_text(around: Tensor, picture: Tensor, start: int, stop: int) -> Tensor:
    pieces = [around[:, :start]] * (start > 0) + [picture]
    pieces += [around[:, stop:]] * (stop < around.shape[1])
    return picture if len(pieces) == 1 else torch.cat(pieces, 1)


def text_around(tokens: Tensor, start: int, length: int) -> Tensor:
    """`[B, L − N, C]`: the tokens of `[B, L, C]` around the picture's `length`."""
    return torch.cat((tokens[:, :start], tokens[:, start + length :]), 1)


def text_change_of(before: Tensor, after: Tensor, start: int, length: int) -> Tensor:
    """`[B, L − N, C]`: what a run of blocks made of the text around the picture."""
    return text_around(after, start, length) - text_around(before, start, length)


def around_picture(text: Tensor, picture: Tensor, start: int) -> Tensor:
    """`text_around` and the picture `[B, N, C]` back to `[B, L, C]`."""
    return between_text(text, picture, start, start)


def picture_tokens(tokens: Tensor, start: int, length: int) -> Tensor:
    """`[B, N, C]`: the picture's `length` tokens of `[B, L, C]`, from `start` on."""
    return _picture(tokens, start, length)


def with_picture(
    tokens: Tensor, change: Callable[..., Tensor], start: int, length: int, *plan: Tensor
) -> Tensor:
    """`[B, L, C]` with the picture's `length` tokens, from `start` on, changed by a function."""
    if length == tokens.shape[1]:
        return change(tokens, *plan)
    picture = change(tokens.narrow(1, start, length), *plan)
    return between_text(tokens, picture, start, start + length)


def gather_picture(tokens: Tensor, rows: Tensor, start: int, length: int) -> Tensor:
    """`[B, L, C]` with only `rows` `[1, D]` of the picture's tokens."""
    return with_picture(tokens, lambda picture: picture.index_select(1, rows[0]), start, length)


def destination_rows(destinations: Tensor, order: Tensor | None, size: int) -> Tensor:
    """`[B, W, d]` slots to `[B, D]` tokens of the picture."""
    batch, windows, _ = destinations.shape
    first = torch.arange(windows, device=destinations.device).view(1, -1, 1) * size
    slots = (destinations + first).view(batch, -1)
    return slots if order is None else order[slots]


def row_index(rows: Tensor, before: int, after: int, length: int) -> Tensor:
    """`[B, D]` picture tokens to `[B, before + D + after]` rows of a table over all tokens."""
    if not before and not after:
        return rows
    batch = rows.shape[0]
    text = torch.arange(before, device=rows.device).expand(batch, -1)
    rest = torch.arange(after, device=rows.device).expand(batch, -1) + (before + length)
    return torch.cat((text, rows + before, rest), 1)


def gather_rows(table: Tensor, index: Tensor, axis: int, batch: int | None, leading: int) -> Tensor:
    """The rows of a table, along `axis`, at each item's index; `batch` is its batch axis."""
    table = table[(None,) * leading] if leading else table
    if index.shape[0] == 1:
        return table.index_select(axis, index[0])
    assert batch is not None
    sizes = [1] * table.dim()
    sizes[batch], sizes[axis] = index.shape
    items_first = index if batch < axis else index.t()
    rows, found = items_first.reshape(sizes), list(table.shape)
    found[batch] = index.shape[0]
    # `take_along_dim` does the same, but settles a batch that is a symbol.
    whole = table.expand(found)
    found[axis] = index.shape[1]
    return whole.gather(axis, rows.expand(found))


def slots_from_sequence(
    sequence: Tensor, slot_ranks: Tensor, rank_slots: Tensor
) -> tuple[Tensor, Tensor]:
    """Order and inverse of a token sequence that is data (see `Windows` for the two tables)."""
    ranks = torch.argsort(sequence)
    return sequence[slot_ranks], rank_slots[ranks]
