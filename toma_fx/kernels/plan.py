"""The plan on CUDA: which kernels run, as one operation that compilers can look into.

`toma_fx::plan_kernels_` takes what `toma_fx::plan_` takes and is a `torch.library.triton_op`:
AOTAutograd decomposes it into its kernels, so that Inductor schedules them and AOTInductor packs
their binaries. `plan_` stays opaque in a graph and calls it when it runs; to lower the kernels
into a package, replace the target of the graph's `plan_` nodes by
`torch.ops.toma_fx.plan_kernels_.default`, argument by argument.
"""

from __future__ import annotations

from typing import Any

import torch

from toma_fx.kernels.fallback import LARGEST_WINDOW, select_always, weigh_always
from toma_fx.kernels.greedy import launch_greedy
from toma_fx.kernels.similarity import launch_similarity
from toma_fx.kernels.weights import launch_weights
from toma_fx.planning import PlanArguments, pad_mask


def plan_kernels(
    hidden: torch.Tensor,
    order: torch.Tensor | None,
    phase: torch.Tensor,
    destinations: torch.Tensor,
    merging: torch.Tensor,
    unmerging: torch.Tensor,
    temperature: float,
    unmerge: str,
    pairs: bool,
    slot: torch.Tensor | None = None,
) -> None:
    """The body of the operation: traceable, its arguments checked by `plan_cuda`.

    They are `PlanArguments`, spelt out: torch reads the operation's schema from them.
    """
    batch, windows, _ = destinations.shape[-3:]
    total, size, _ = unmerging.shape[-3:]
    pads = windows * size - hidden.shape[1]
    valid = pad_mask(batch, windows, size, hidden.shape[1], hidden.device)
    similarities = hidden.new_empty((total, size, size), dtype=torch.float32)
    launch_similarity(hidden, order, phase, similarities, windows)
    if size <= LARGEST_WINDOW:
        launch_greedy(similarities, phase, destinations, pads, pairs, slot)
    else:
        select_always(similarities, phase, destinations, valid, pairs, slot)
    plan = (destinations, merging, unmerging)
    if size <= LARGEST_WINDOW and unmerge == "transpose":
        launch_weights(similarities, phase, *plan, pads, temperature, slot)
    else:
        weigh_always(similarities, phase, *plan, valid, temperature, unmerge, slot)


plan_kernels_ = torch.library.triton_op(
    "toma_fx::plan_kernels_",
    plan_kernels,
    mutates_args=("destinations", "merging", "unmerging"),
)


def plan_cuda(*given: Any) -> None:
    """Do what the phase asks for, decided on the device: no wait, no size that depends on data.

    For windows of up to 256 tokens and `unmerge="transpose"`: three launches, which return at
    once in phase 0. Otherwise see `fallback`, the slow path. Needs a workspace of `4·B·W·n²` bytes
    while it runs.

    Args:
        *given: `PlanArguments`.

    Raises:
        ValueError: shapes, dtypes or layouts do not fit one another.
    """
    call = PlanArguments(*given)
    _check_slots(call)
    _check(call)
    with torch.cuda.device_of(call.hidden):  # Triton launches on the current device
        plan_kernels_(*call)


def _check(call: PlanArguments) -> None:
    """Refuse what the kernels would read or write wrongly: they trust every size."""
    hidden, order, phase, pairs = call.hidden, call.order, call.phase, call.pairs
    one = ... if call.slot is None else 0
    destinations, merging, unmerging = (buffer[one] for buffer in call.buffers)
    batch, windows, count = destinations.shape
    size = merging.shape[-1]
    slots = windows * size
    tokens = hidden.shape[1] if order is None else order.numel()
    dtypes = (phase.dtype, destinations.dtype, torch.int64 if order is None else order.dtype)
    fits = {
        f"hidden must hold {batch} items": hidden.shape[0] == batch,
        f"there must be {slots} slots, one a token or in order": tokens == slots,
        f"a window of {size} cannot keep {count}": 1 <= count <= size,
        "a window can miss one token at most": 0 <= slots - hidden.shape[1] <= windows,
        f"merging must be {[batch * windows, count, size]}": merging.shape
        == (batch * windows, count, size),
        f"unmerging must be {[batch * windows, size, count]}": unmerging.shape
        == (batch * windows, size, count),
        "phase must be one int32, destinations and order int64": phase.numel() == 1
        and dtypes == (torch.int32, torch.int64, torch.int64),
        "buffers and order must be contiguous": all(
            tensor.is_contiguous()
            for tensor in (destinations, merging, unmerging, order)
            if tensor is not None
        ),
        'unmerge must be "transpose" or "pinv"': call.unmerge in ("transpose", "pinv"),
        "pairs need an even batch": not pairs or batch % 2 == 0,
    }
    for message, good in fits.items():
        if not good:
            raise ValueError(f"plan_: {message}")


def _check_slots(call: PlanArguments) -> None:
    if call.slot is None:
        return
    if call.slot.numel() != 1 or call.slot.dtype != torch.int64:
        raise ValueError("plan_: slot must be one int64")
    if len({len(buffer) for buffer in call.buffers}) != 1:
        raise ValueError("plan_: every buffer must hold as many plans")
