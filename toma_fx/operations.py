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

from typing import Any

import torch

from toma_fx import kernels, reference
from toma_fx.planning import REUSE, SELECT, WEIGH, PlanArguments, pad_mask, select, windowed

__all__ = ["REUSE", "SELECT", "WEIGH", "pad_mask", "select", "windowed"]

_library = torch.library.Library("toma_fx", "DEF")
_library.define(
    "plan_(Tensor hidden, Tensor? order, Tensor phase, Tensor(a!) destinations, "
    "Tensor(b!) merging, Tensor(c!) unmerging, float temperature, str unmerge, bool pairs, "
    "Tensor? slot=None) -> ()"
)


def _plan(*given: Any) -> None:
    call = PlanArguments(*given)
    due, hidden = int(call.phase), call.hidden
    if due == REUSE:
        return
    place = ... if call.slot is None else int(call.slot)
    destinations, merging, unmerging = (buffer[place] for buffer in call.buffers)
    batch, windows, count = destinations.shape
    size = merging.shape[-1]
    similarities = reference.similarity(windowed(hidden, call.order, size))
    valid = pad_mask(batch, windows, size, hidden.shape[1], hidden.device)
    if due == SELECT:
        picks = select(similarities, count, valid, call.pairs)
        destinations.copy_(picks.view_as(destinations))
    chosen = destinations.view(-1, count)
    weights = reference.spread(similarities, chosen, call.temperature, valid)
    merging.copy_(reference.merge_matrix(weights))
    unmerging.copy_(reference.unmerge_matrix(weights, call.unmerge))


_library.impl("plan_", _plan, "CompositeExplicitAutograd")
torch.library.register_fake("toma_fx::plan_", lambda *args: None, lib=_library)
kernels.register(_library)
