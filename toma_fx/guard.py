"""The guard of the reuse cache: plain tensor arithmetic, so that it runs where the data lives.

Whether a plan may be reused depends on the timestep and on a few elements of the latents. Reading
them on the host would stop the device at every step and break CUDA graphs, so the decision is part
of the graph. `decide` is traced and inlined; its state lives in three buffers:

- `memory` `[M]` float32: the last timestep and the last fingerprints;
- `tally` `[13]` int64: freshness, step, and the statistics (see the constants);
- the plan buffers of the groups, which `toma_fx::plan_` fills by the phase decided here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from toma_fx.operations import REUSE, SELECT, WEIGH

# Entries of `tally`. FRESH is one of the three values below it; TURNS counts generations that
# began without a step between them; the misses follow in this order.
FRESH, STEP, TURNS, STEPS, SELECTIONS, WEIGHINGS, REUSES, FIRST_MISS = range(8)
WARM, COLD, RESET = range(3)
MISSES = ("cold", "reset", "grid", "conditioning", "new_generation", "schedule")
TALLY_SIZE = FIRST_MISS + len(MISSES)

SAMPLES = 64
"""Elements of a tensor in its fingerprint; compared exactly, so that other noise never matches."""


def fingerprint(tensors: Sequence[Tensor]) -> Tensor:
    """Up to `SAMPLES` evenly spaced elements of each tensor, as float32 `[≤ SAMPLES · count]`."""
    parts = []
    for tensor in tensors:
        count = min(tensor.numel(), SAMPLES)
        places = torch.arange(count, device=tensor.device) * (tensor.numel() - 1)
        parts.append(tensor.reshape(-1)[places // max(count - 1, 1)].float())
    return torch.cat(parts)


def decide(
    memory: Tensor,
    tally: Tensor,
    timestep: Tensor,
    latents: Tensor,
    conditioning: Tensor | None,
    grid: Tensor | None,
    select_every: int,
    weigh_every: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The phase of this call, and the state after it.

    A call starts a new generation where the cache is cold, the grid or (on request) the
    conditioning changed, the timestep rose, or it stayed and the latents did not. Sequential
    guidance, two calls with one timestep and the same latents, is one step. NaNs are never equal.

    A picture's first step may rise; its second falls. Where the timestep rose twice in a row (an
    inversion, a model whose time runs upwards), nobody can tell whether the next fall goes on with
    a picture or begins one, so it begins one. With guarded conditioning, which is for generations
    that take turns, the same holds after a timestep that stayed with other latents.

    Args:
        memory: `[T + L + K + G]` float32.
        tally: `[TALLY_SIZE]` int64.
        timestep: `T` elements, one or one per item; all must fall for a step to advance.
        latents: `[L]` fingerprint; empty where the graph shows none: then a repeated timestep
            is always a new generation.
        conditioning: `[K]` fingerprint, or None if it is not guarded.
        grid: `[G]` position ids, or None where the grid is static.
        select_every: steps between selections; a larger value reuses older destinations.
        weigh_every: steps between computations of the weights.

    Returns:
        Phase (int32 scalar), new memory, new tally.
    """
    now = timestep.reshape(-1).float()
    seen = torch.cat([part for part in (latents, conditioning, grid) if part is not None])
    last, remembered = memory[: now.numel()], memory[now.numel() :]
    sizes = [0 if part is None else part.numel() for part in (latents, conditioning, grid)]
    same = [
        (old == new).all()
        for old, new in zip(remembered.split(sizes), seen.split(sizes), strict=True)
    ]
    advanced = (now < last).all()
    stayed = (now == last).all()
    repeated = stayed & same[0] if sizes[0] else torch.zeros_like(stayed)
    goes_on = (advanced & (tally[TURNS] < 2)) | repeated
    cold, reset = tally[FRESH] == COLD, tally[FRESH] == RESET
    cause = [cold, reset, ~same[2], ~same[1], ~goes_on]
    anew = torch.stack(cause).any()
    turn = torch.where(stayed, 0 if conditioning is None else 2, 1)
    turns = torch.where(repeated, tally[TURNS], tally[TURNS] + turn)
    turns = torch.where(advanced | cold | reset, 0, turns)
    step = torch.where(anew, 0, tally[STEP] + advanced)
    due = anew | (advanced & (step % select_every == 0))
    weigh = due | (advanced & (step % weigh_every == 0))
    phase = torch.where(due, SELECT, torch.where(weigh, WEIGH, REUSE)).to(torch.int32)
    missed = _first(torch.stack([*cause, due]))
    counted = torch.stack((anew | advanced, due, weigh, ~weigh))
    counts = tally[STEPS:] + torch.cat((counted, missed)).to(tally.dtype)
    state = torch.stack((torch.full_like(step, WARM), step, turns))
    return phase, torch.cat((now, seen)), torch.cat((state, counts))


def count_selection(tally: Tensor) -> Tensor:
    """The statistics after a call of a graph without a timestep, which selects each time."""
    place = torch.arange(TALLY_SIZE, device=tally.device)
    counted = (STEPS, SELECTIONS, WEIGHINGS, FIRST_MISS + MISSES.index("cold"))
    return tally + torch.stack([place == entry for entry in counted]).any(0)


def _first(flags: Tensor) -> Tensor:
    """Keep only the first True: every selection has one reason."""
    return flags & (flags.cumsum(0) == 1)
