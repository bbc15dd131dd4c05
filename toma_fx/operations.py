"""`toma_fx::plan_`: the in-place operation that fills a group's plan buffers.

The op is one opaque node for Inductor. Its buffers are inputs that it mutates, never outputs:
Inductor reuses the memory of outputs. What it does is decided by `phase` where the data lives:
on a CPU the scalar is read, on CUDA the kernels read it on the device and return at once.

A plan of `W` windows of `n` slots with `d` destinations each, for `B` items:

- `destinations` `[B, W, d]` int64: slots within the window, sorted;
- `merging` `[B·W, d, n]`: rows are weighted means;
- `unmerging` `[B·W, n, d]`: what brings merged tokens back to full length.

Buffers may hold several plans, for several conditionings: `[S, …]` each, of which the operation
reads and writes the one that `slot` names.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from toma_fx import kernels, reference

REUSE, WEIGH, SELECT = 0, 1, 2
"""Phases: keep the plan; compute its weights anew; pick destinations and weights anew."""

_library = torch.library.Library("toma_fx", "DEF")
_library.define(
    "plan_(Tensor hidden, Tensor? order, Tensor phase, Tensor(a!) destinations, "
    "Tensor(b!) merging, Tensor(c!) unmerging, float temperature, str unmerge, bool pairs, "
    "Tensor? slot=None) -> ()"
)


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


def _plan(
    hidden: Tensor,
    order: Tensor | None,
    phase: Tensor,
    destinations: Tensor,
    merging: Tensor,
    unmerging: Tensor,
    temperature: float,
    unmerge: str,
    pairs: bool,
    slot: Tensor | None = None,
) -> None:
    due = int(phase)
    if due == REUSE:
        return
    if slot is not None:
        place = int(slot)
        destinations, merging, unmerging = destinations[place], merging[place], unmerging[place]
    batch, windows, count = destinations.shape
    size = merging.shape[-1]
    similarities = reference.similarity(windowed(hidden, order, size))
    valid = pad_mask(batch, windows, size, hidden.shape[1], hidden.device)
    if due == SELECT:
        picks = select(similarities, count, valid, pairs)
        destinations.copy_(picks.view_as(destinations))
    weights = reference.spread(similarities, destinations.view(-1, count), temperature, valid)
    merging.copy_(reference.merge_matrix(weights))
    unmerging.copy_(reference.unmerge_matrix(weights, unmerge))


_library.impl("plan_", _plan, "CompositeExplicitAutograd")
torch.library.register_fake("toma_fx::plan_", lambda *args: None, lib=_library)
kernels.register(_library)
