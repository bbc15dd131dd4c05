"""The slow path: plans that no kernel makes, from plain operations that never wait.

For windows above `LARGEST_WINDOW` and for `unmerge="pinv"`. Whether the result is due is known on
the device alone, so it is computed at every step and kept where `phase` says so: a step that
reuses its plan pays as much as one that makes it. Similarities come from the kernel, which skips
its work; in phase 0 what is computed from them is thrown away.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from toma_fx import reference
from toma_fx.planning import REUSE, SELECT

LARGEST_WINDOW = 256
"""Tokens of the largest window whose plan the kernels make."""


def select_always(
    similarities: Tensor,
    phase: Tensor,
    destinations: Tensor,
    valid: Tensor | None,
    pairs: bool,
    slot: Tensor | None = None,
) -> None:
    """`reference.greedy` at every step, kept in phase 2: some ten launches a destination.

    Args:
        similarities: `[B·W, n, n]` float32.
        phase: int32 scalar on the same device.
        destinations: `[B, W, d]` int64; overwritten in phase 2.
        valid: `[B·W, n]` bool, False at pads, or None.
        pairs: windows `i` and `i + B·W/2` share one selection, their gains added.
        slot: int64 `[1]`, where `destinations` are `[S, B, W, d]`.
    """
    units = reference.fixed_point(similarities)
    if pairs:
        units = torch.stack(units.chunk(2), 1)
        valid = None if valid is None else valid.chunk(2)[0]
    picks = reference.greedy(units, destinations.shape[-1], valid)
    picks = picks.repeat(2, 1) if pairs else picks
    _keep(phase == SELECT, picks.view(destinations.shape[-3:]), destinations, slot)


def weigh_always(
    similarities: Tensor,
    phase: Tensor,
    destinations: Tensor,
    merging: Tensor,
    unmerging: Tensor,
    valid: Tensor | None,
    temperature: float,
    unmerge: str,
    slot: Tensor | None = None,
) -> None:
    """Both matrices at every step, kept in phases 1 and 2.

    Args:
        similarities: `[B·W, n, n]` float32.
        phase: int32 scalar on the same device.
        destinations: `[B, W, d]` int64.
        merging: `[B·W, d, n]`, any floating dtype; overwritten in phases 1 and 2.
        unmerging: `[B·W, n, d]`, likewise.
        valid: `[B·W, n]` bool, False at pads, or None.
        temperature: τ; a larger value blends more destinations into a token.
        unmerge: `"transpose"` or `"pinv"`, see `reference.unmerge_matrix`.
        slot: int64 `[1]`, where the three are `[S, …]`.
    """
    size = similarities.shape[-1]
    kept = destinations if slot is None else destinations.index_select(0, slot).squeeze(0)
    # A plan that was never made may hold anything, and is computed from in phase 0 all the same.
    picks = kept.view(-1, kept.shape[-1], 1).clamp(0, size - 1)
    rows = similarities.gather(1, picks.expand(-1, -1, size))
    weights = torch.softmax(rows / temperature, dim=1)
    if valid is not None:
        weights = weights * valid.unsqueeze(1)
    restore = weights.transpose(-1, -2) if unmerge == "transpose" else pseudo_inverse(weights)
    _keep(phase != REUSE, reference.merge_matrix(weights), merging, slot)
    _keep(phase != REUSE, restore, unmerging, slot)


def pseudo_inverse(weights: Tensor) -> Tensor:
    """`reference.unmerge_matrix(weights, "pinv")` from matrix products alone.

    An eigendecomposition waits for the device to report errors, so `G = MMᵀ` is inverted by
    Newton's iteration `X ← X(2 − GX)` from `X = 1/‖G‖`. After `k` steps eigenvalues far below
    `2⁻ᵏ‖G‖` are still cut off, as a pseudo-inverse cuts them: `k` is chosen to match that of
    `torch.linalg.pinv`. In float64, where rounding noise stays small and no TF32 can enter.

    Args:
        weights: `[P, d, n]` float32; a larger `d` costs its cube, about 20 times.

    Returns:
        `[P, n, d]` float32.
    """
    merging = reference.merge_matrix(weights).double()
    gram = merging @ merging.transpose(-1, -2)
    count = gram.shape[-1]
    scale = gram.abs().sum(-1).amax(-1)[:, None, None]
    identity = torch.eye(count, dtype=gram.dtype, device=gram.device)
    inverse = identity / scale
    for _ in range(math.ceil(-math.log2(count * torch.finfo(torch.float32).eps))):
        inverse = inverse @ (2 * identity - gram @ inverse)
    return (merging.transpose(-1, -2) @ inverse).float()


def _keep(due: Tensor, new: Tensor, buffer: Tensor, slot: Tensor | None) -> None:
    new = new.to(buffer.dtype)
    if slot is None:
        buffer.copy_(torch.where(due, new, buffer))
    else:
        old = buffer.index_select(0, slot)
        buffer.index_copy_(0, slot, torch.where(due, new.unsqueeze(0), old))
