"""What all implementations of a plan share: arguments, phases, windows, whose picks are whose."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from toma_fx import reference

REUSE, WEIGH, SELECT = 0, 1, 2
"""Phases: keep the plan; compute its weights anew; pick destinations and weights anew."""


class PlanArguments(NamedTuple):
    """What `toma_fx::plan_` takes, and whatever stands for it, in this order.

    Attributes:
        hidden: `[B, N, C]` float32, bfloat16 or float16, any strides.
        order: `[W·n]` int64, the token in each slot; None if slot `i` holds token `i`.
        phase: int32 scalar: 0 leaves the buffers as they are, 1 computes the weights of the
            destinations that it finds, 2 picks destinations too.
        destinations: `[B, W, d]` int64, contiguous. A larger `d` costs one pick each.
        merging: `[B·W, d, n]`, any floating dtype, contiguous.
        unmerging: `[B·W, n, d]`, likewise.
        temperature: τ; a larger value blends more destinations into a token.
        unmerge: `"transpose"` or `"pinv"`.
        pairs: item `i` shares the selection of item `i + B/2`.
        slot: int64 `[1]`, which of `S` plans; the three buffers are `[S, …]` then.
    """

    hidden: Tensor
    order: Tensor | None
    phase: Tensor
    destinations: Tensor
    merging: Tensor
    unmerging: Tensor
    temperature: float
    unmerge: str
    pairs: bool
    slot: Tensor | None = None

    @property
    def buffers(self) -> tuple[Tensor, Tensor, Tensor]:
        """What a plan is kept in, of all slots."""
        return self.destinations, self.merging, self.unmerging


def windowed(hidden: Tensor, order: Tensor | None, size: int) -> Tensor:
    """`[B, N, C]` tokens to `[B·W, n, C]` windows; `order` `[W·n]` lists each slot's token."""
    ordered = hidden if order is None else hidden.index_select(1, order)
    return ordered.reshape(-1, size, hidden.shape[-1])


def pad_mask(
    batch: int, windows: int, size: int, tokens: int, device: torch.device
) -> Tensor | None:
    """`[B·W, n]` bool, False at pads; None without pads (see `Windows`)."""
    pads = windows * size - tokens
    if pads == 0:
        return None
    valid = torch.ones(batch, windows, size, dtype=torch.bool, device=device)
    valid[:, windows - pads :, -1] = False
    return valid.view(-1, size)


def select(
    similarities: Tensor,
    count: int,
    valid: Tensor | None,
    pairs: bool,
    greedy: Callable[[Tensor, int, Tensor | None], Tensor] = reference.greedy,
) -> Tensor:
    """`[B·W, d]` destinations; with `pairs`, item `i` shares those of item `i + B/2`."""
    units = reference.fixed_point(similarities)
    if not pairs:
        return greedy(units, count, valid)
    half = units.shape[0] // 2
    both = torch.stack((units[:half], units[half:]), 1)
    return greedy(both, count, None if valid is None else valid[:half]).repeat(2, 1)
