"""The guard of the reuse cache: plain tensor arithmetic, so that it runs where the data lives.

Whether a plan may be reused depends on the timestep, the latents and the conditioning. Reading them
on the host would stop the device at every step and break CUDA graphs, so the decision is part of
the graph. `decide` is traced and inlined; its state lives in three buffers:

- `memory` `[S, M]` float32: for each slot the last timestep, samples and fingerprints;
- `slots` `[S, 5]` int64: for each slot what `STATE … USED` name;
- `tally` `[TALLY_SIZE]` int64: freshness, which the host writes, and the statistics.

**Slots.** What a call leaves behind (plans, memories) is used again under the same conditioning
only. The fingerprint of the conditioning picks one of `S` slots; each has a generation of its own.
Sequential guidance uses two. A call whose conditioning no slot knows begins anew in the slot that
was used longest ago. More slots keep more prompts that take turns, and cost one plan each.

**Generations.** Within a slot, what the timestep did since the call before decides. `near` is
`close_by`; a *beat* is one fall since the generation began or since its last second stage:

| timestep | latents | and | this call |
|---|---|---|---|
| fell | any | fewer than two rises in a row before | goes on, one step further |
| fell | any | otherwise | begins a generation |
| stayed | the same | | is the same call again |
| stayed | near | one beat | goes on, one step further: a second stage |
| stayed | otherwise | | begins a generation |
| rose, or rose in some items | any | | begins a generation |

So Euler, DDIM, DPM++, KDPM2, UniPC, LCM and flow matching go on by falling. Heun repeats each
timestep once, `t₀ t₁ t₁ t₂ t₂ …`, PNDM the first few: stages of one step, whose latents lie close
together; where they do not (two steps), a selection is the price. A picture of one step that begins
where one of two steps ended (`t₀ t₁`, then `t₁`) has the same timesteps, but other noise. Pictures
of one step have no beat.

After two rises in a row (an inversion) nobody can tell whether the next fall goes on with a picture
or begins one, so it begins one. Where the time of a model runs upwards (Z-Image, Lumina), fall and
rise change places on request.

**What nobody can see** from timestep, latents and conditioning: a picture of the very same
conditioning that begins below where the one before it ended, which was abandoned or had few steps;
and two pictures of one conditioning that take turns. Whoever knows says so, by `reset` or `stream`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from toma_fx.fingerprint import close_by
from toma_fx.operations import REUSE, SELECT, WEIGH

# Entries of `tally`. FRESH is one of the three values below it, and other than WARM only where the
# host wrote it: then it holds for every slot. The misses follow in this order.
FRESH, STEPS, SELECTIONS, WEIGHINGS, REUSES, FIRST_MISS = range(6)
WARM, COLD, RESET = range(3)
MISSES = ("cold", "reset", "grid", "conditioning", "new_generation", "schedule")
TALLY_SIZE = FIRST_MISS + len(MISSES)

# Columns of `slots`: freshness; calls by which the generation moved on; rises in a row; falls since
# it began or since its last second stage, two at most; when the slot was used.
STATE, STEP, TURNS, BEAT, USED = range(5)
SLOT_SIZE = 5


def decide(
    memory: Tensor,
    slots: Tensor,
    tally: Tensor,
    timestep: Tensor,
    drawn: Tensor | None,
    latents: Tensor | None,
    conditioning: Tensor | None,
    grid: Tensor | None,
    select_every: int,
    weigh_every: int,
    take_turns: bool,
    goes_on: bool = False,
    rises: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What is due at this call, for whom, and the state after it.

    NaNs are never equal. Every slot is judged as if the call were its own, and one is then taken.
    With the fingerprints Inductor makes some twenty kernels of it on a GPU, two for each input.

    Args:
        memory: `[S, T + count · n + L + K + G]` float32.
        slots: `[S, SLOT_SIZE]`.
        tally: `[TALLY_SIZE]`.
        timestep: `T` elements, one or one per item; all must fall for a step to advance.
        drawn: `[count, n]` samples of the latents.
        latents: `[L]` fingerprint. Both are None where the graph shows none: then a repeated
            timestep is always a new generation.
        conditioning: `[K]` fingerprint; None if it is not guarded, and then `S` is 1.
        grid: `[G]` fingerprint of position ids; None where the grid is static.
        select_every: steps between selections; a larger value reuses older destinations.
        weigh_every: steps between computations of the weights.
        take_turns: generations of one conditioning may take turns: after a timestep that stayed
            with other latents the next fall begins a generation, too.
        goes_on: whoever calls knows that a slot which knows the call goes on with its generation,
            whatever the timestep did.
        rises: the timestep of this model rises within a picture: it is read with the other sign.

    Returns:
        Phase (int32 scalar), step (int64 scalar, 0 at the first call of a generation), whether the
        slot starts from nothing (bool scalar), the slot (int64 `[1]`); new memory, slots, tally.
    """
    now = timestep.reshape(-1).float() * (-1 if rises else 1)
    given = (now, *(() if drawn is None else drawn.unbind()), latents, conditioning, grid)
    seen = torch.cat([part.reshape(-1) for part in given if part is not None])
    time, *pictures, draws, texts, places = _columns(given, seen.device)
    equal = memory == seen
    fell, stayed = ((seen < memory) | ~time).all(1), (equal | ~time).all(1)
    same_draws, same_text, same_place = ((equal | ~part).all(1) for part in (draws, texts, places))

    state = torch.where(tally[FRESH] == WARM, slots[:, STATE], tally[FRESH])
    warm = state == WARM
    knows = warm & same_text
    used = torch.where(warm, slots[:, USED], -1)
    again = stayed & same_draws & (latents is not None)
    second = stayed & (slots[:, BEAT] == 1) & ~again & bool(pictures)
    for picture in pictures:
        second = second & close_by(memory, seen, picture)
    follows = (fell & (slots[:, TURNS] < 2)) | again | second | goes_on
    anew = ~(knows & same_place & follows)
    moved = fell | second

    step = torch.where(anew, 0, slots[:, STEP] + moved)
    due = anew | (moved & (step % select_every == 0))
    weigh = due | (moved & (step % weigh_every == 0))
    phase = torch.where(due, SELECT, torch.where(weigh, WEIGH, REUSE))
    turns = slots[:, TURNS] + torch.where(stayed, 2 * take_turns, 1)
    turns = torch.where(fell | ~knows, 0, torch.where(again | second, slots[:, TURNS], turns))
    beat = torch.where(second | anew, 0, (slots[:, BEAT] + fell).clamp(max=2))
    stamp = (used.max() + 1).expand_as(step)
    # The second call of sequential guidance repeats what the call before it saw in another slot.
    echo = (warm & (used == used.max()) & again & same_place).any()
    causes = (state == COLD, state == RESET, knows & ~same_place, warm & ~knows, ~follows, due)
    counted = ((anew | moved) & ~echo, due, weigh, ~weigh, *_first(causes))

    slot = torch.where(knows, 2**62, -used).argmax(keepdim=True)
    mine = (torch.arange(len(slots), device=slots.device) == slot).unsqueeze(1)
    row = torch.stack((phase, step, anew, *counted)).index_select(1, slot).squeeze(1)
    columns = torch.stack((torch.zeros_like(step), step, turns, beat, stamp), 1)
    others = torch.cat((state.unsqueeze(1), slots[:, STATE + 1 :]), 1)
    return (
        row[0].to(torch.int32),
        row[1],
        row[2] != 0,
        slot,
        torch.where(mine, seen, memory),
        torch.where(mine, columns, others),
        torch.cat((torch.zeros_like(tally[:STEPS]), tally[STEPS:] + row[3:])),
    )


def unless(fresh: Tensor, *state: Tensor) -> list[Tensor]:
    """The state after a call; as it was before where the call is fresh.

    Args:
        fresh: bool scalar.
        state: before, and as many tensors after it.
    """
    half = len(state) // 2
    return [torch.where(fresh, *both) for both in zip(state[:half], state[half:], strict=True)]


def count_selection(tally: Tensor) -> Tensor:
    """The statistics after a call of a graph without a timestep, which selects each time."""
    place = torch.arange(TALLY_SIZE, device=tally.device)
    counted = (STEPS, SELECTIONS, WEIGHINGS, FIRST_MISS + MISSES.index("cold"))
    return tally + torch.stack([place == entry for entry in counted]).any(0)


def notice(
    seen: Tensor, tally: Tensor, told: Tensor, slot: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What is due in a part of a model that is told the moment from outside.

    Due is what happened since the part looked the last time, also where it was left out of calls in
    between. Where nobody tells, every call begins a generation, and is counted here.

    Args:
        seen: `[S, 3]` int64: for each slot what was told when it was last used, 0 before.
        tally: `[TALLY_SIZE]`.
        told: `[4]` int64: the numbers of the calls in which the slot's generation began, its
            destinations were picked and its weights computed for the last time, and the step.
            Numbers are above 0, and negative where nobody tells.
        slot: `[1]` int64; None where there is one.

    Returns:
        Phase, step and whether the slot starts from nothing, as from `decide`; the new row of
        `seen` `[3]`, and the new tally.
    """
    mine = seen[0] if slot is None else seen.index_select(0, slot).squeeze(0)
    numbers, alone = told[:3], told[0] < 0
    fresh, select, weigh = ((mine != numbers) | alone).unbind()
    phase = torch.where(select, SELECT, torch.where(weigh, WEIGH, REUSE)).to(torch.int32)
    counted = torch.where(alone, count_selection(tally), tally)
    return phase, told[3], fresh, torch.where(alone, 0, numbers), counted


def cold_tally(device: torch.device) -> Tensor:
    """The statistics before the first call; every slot is cold."""
    tally = torch.zeros(TALLY_SIZE, dtype=torch.int64, device=device)
    tally[FRESH] = COLD
    return tally


def _columns(parts: Sequence[Tensor | None], device: torch.device) -> list[Tensor]:
    """For each part, its columns among those of all, `[M]` bool: reductions of one shape fuse."""
    sizes = [0 if part is None else part.numel() for part in parts]
    column = torch.arange(sum(sizes), device=device)
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    ends = [start + size for start, size in zip(starts, sizes, strict=True)]
    return [(column >= a) & (column < b) for a, b in zip(starts, ends, strict=True)]


def _first(flags: Sequence[Tensor]) -> list[Tensor]:
    """Of flags `[S]`, the first that is True, alone: every selection has one reason."""
    found, kept = torch.zeros_like(flags[0]), []
    for flag in flags:
        kept.append(flag & ~found)
        found = found | flag
    return kept
