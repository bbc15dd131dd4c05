"""Plans without Python: what stands for `toma_fx::plan_` in a program that is exported.

`plan_` reads its phase on the host, in Python. In a package nobody is there to run it:

- on a CPU the plan is plain ATen. The phase is the predicate of two `torch.cond`, so that a step
  that reuses its plan computes nothing of it, and the greedy selection is a `torch.while_loop`:
  unrolled, its generated code would grow with the destinations.
- on CUDA it is `toma_fx::plan_kernels_`, the same Triton kernels, which read the phase on the
  device. AOTInductor packs their binaries.

Gains are compared as integers, so that generated code picks what the eager reference picks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from toma_fx import operations, reference  # noqa: F401 - registers what is lowered
from toma_fx.errors import ExportError
from toma_fx.kernels import available
from toma_fx.planning import REUSE, SELECT, PlanArguments, pad_mask, select

PLAN = torch.ops.toma_fx.plan_.default

# The operators themselves. `torch.cond` would have Dynamo trace the branches, which takes the sizes
# of the second plan for dynamic ones.
_cond = torch.ops.higher_order.cond
_while_loop = torch.ops.higher_order.while_loop


def lower_plans(gm: fx.GraphModule) -> int:
    """Replace every `plan_` of a graph, in place, by what its device can run without Python.

    Before: `plan_(hidden, order, phase, destinations, merging, unmerging, …)`. After: a call of
    `plan_on_cpu`, which `torch.export` traces into plain ATen, or of `toma_fx::plan_kernels_`.

    Returns:
        How many there were.

    Raises:
        ExportError: the plan is on a device for which there is no lowering.
    """
    plans = [node for node in gm.graph.nodes if node.target is PLAN]
    for node in plans:
        hidden = node.args[0]
        assert isinstance(hidden, fx.Node)
        node.target = _lowered(hidden.meta["val"].device.type)
    gm.recompile()
    return len(plans)


def _lowered(device: str) -> Callable[..., Any]:
    if device == "cpu":
        return plan_on_cpu
    if device != "cuda":
        raise ExportError(f"plans have no lowering for {device}: export on a CPU or on CUDA")
    if not available():
        raise ExportError("plans on CUDA are Triton kernels: pip install triton")
    from toma_fx.kernels.plan import plan_kernels_  # noqa: F401 - imports Triton, registers the op

    kernels: Callable[..., Any] = torch.ops.toma_fx.plan_kernels_.default
    return kernels


def plan_on_cpu(*given: Any) -> None:
    """`toma_fx::plan_` in operations that are exported; arguments and effects are the same.

    Both conditions compute the similarities: passing them on would compute them at every step.
    A step that reuses its plan copies it, `2·B·W·d·n` numbers, since a branch may not return
    what it was given.
    """
    hidden, order, phase, *held, temperature, unmerge, pairs, slot = PlanArguments(*given)
    if slot is None:
        destinations, merging, unmerging = held
    else:
        destinations, merging, unmerging = (b.index_select(0, slot).squeeze(0) for b in held)
    batch, windows, count = destinations.shape
    size, tokens = merging.shape[-1], hidden.shape[1]
    ordered = hidden if order is None else hidden.index_select(1, order)

    def compared(ordered: Tensor) -> tuple[Tensor, Tensor | None]:
        cells = ordered.reshape(-1, size, ordered.shape[-1])
        return reference.cosines(cells), pad_mask(batch, windows, size, tokens, ordered.device)

    # Branches return tuples: Inductor expects nothing else.
    def pick(ordered: Tensor, destinations: Tensor) -> tuple[Tensor]:
        similarities, valid = compared(ordered)
        picks = select(similarities, count, valid, pairs, greedy_loop)
        return (_copied(picks.reshape(batch, windows, count), destinations),)

    def keep(ordered: Tensor, destinations: Tensor) -> tuple[Tensor]:
        return (_copied(destinations, destinations),)

    def weigh(
        ordered: Tensor, picks: Tensor, merging: Tensor, unmerging: Tensor
    ) -> tuple[Tensor, Tensor]:
        similarities, valid = compared(ordered)
        weights = reference.spread(similarities, picks.view(-1, count), temperature, valid)
        back = reference.unmerge_matrix(weights, unmerge)
        return _copied(reference.merge_matrix(weights), merging), _copied(back, unmerging)

    def leave(
        ordered: Tensor, picks: Tensor, merging: Tensor, unmerging: Tensor
    ) -> tuple[Tensor, Tensor]:
        return _copied(merging, merging), _copied(unmerging, unmerging)

    (picks,) = _cond(phase == SELECT, pick, keep, (ordered, destinations))
    plan = _cond(phase != REUSE, weigh, leave, (ordered, picks, merging, unmerging))
    for buffer, made in zip(held, (picks, *plan), strict=True):
        if slot is None:
            buffer.copy_(made)
        else:
            buffer.index_copy_(0, slot, made.unsqueeze(0))


def _copied(tensor: Tensor, like: Tensor) -> Tensor:
    """In the dtype and the contiguous layout of a buffer: branches must agree in both."""
    return tensor.to(like.dtype).clone(memory_format=torch.contiguous_format)


def greedy_loop(units: Tensor, count: int, valid: Tensor | None = None) -> Tensor:
    """`reference.greedy` as one loop of fixed size; arguments and result are the same."""
    if units.dim() == 3:
        units = units.unsqueeze(1)
    n, kind = units.shape[-1], units.dtype
    taken = torch.zeros(units.shape[0], n, dtype=torch.int8, device=units.device)
    if valid is not None:
        units = units.masked_fill(~valid[:, None, None, :], 0)
        taken = taken + (~valid).to(torch.int8)
    never = torch.iinfo(kind).min
    nothing = torch.full_like(units[:, :, 0], -(2**20))  # below every similarity

    def more(step: Tensor, *state: Tensor) -> Tensor:
        return step < count

    def pick(
        step: Tensor, taken: Tensor, covered: Tensor, gains: Tensor, units: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ranked = torch.where(taken == 0, gains, never + (taken == 1).to(kind))
        best = ranked.argmax(-1, keepdim=True)
        taken = torch.where(torch.arange(n, device=units.device) == best, taken + 2, taken)
        row = best[:, None, :, None].expand(-1, units.shape[1], -1, n)
        covered = torch.maximum(covered, units.gather(2, row).squeeze(2))
        gains = (units - covered.unsqueeze(2)).clamp_min(0).sum((1, 3), dtype=kind)
        return step + 1, taken, covered, gains

    start = torch.zeros((), dtype=torch.int64, device=units.device)
    state = start, taken, nothing, units.sum((1, 3), dtype=kind)
    taken = _while_loop(more, pick, state, (units,))[1]
    # Taken tokens first, each kind in its order: the picks, ascending.
    return (taken < 2).to(torch.int8).sort(dim=-1, stable=True).indices[:, :count]
