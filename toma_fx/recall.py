"""What remembers, inside the graph: plain tensor operations, so that Inductor sees through them.

The rewrite traces these functions and inlines them; nothing here is called at run time. The
formulas are those of `toma_fx.refresh`. `B` items, `N` tokens, of which a step computes `D`, each
other one corrected by `M` of them; `C` channels; `q` classes.

An exit's memory is read and written by the kernels that add its result to the residual stream: one
over the computed tokens, which measures their change, and one over all.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from toma_fx import rotation
from toma_fx.refresh import LIMIT, STEEPEST, UNFITTED
from toma_fx.share import Share


def times_size(share: Share) -> int:
    """Numbers that tell the times: the calls of a picture so far, the class that is next, and for
    each class, and for text, the times of its last two values and how many of them it has."""
    return 2 + 3 * (share.classes + 1)


def advance(
    times: Tensor,
    fresh: Tensor,
    share: Share,
    extrapolate: float,
    computes: int | None = None,
    call: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Which classes a call computes, and how far each has come from its last value.

    Time is counted in calls, so that a call that is repeated computes what the one before did not.
    Turns are counted in classes: where nothing is computed, nobody's turn is over.

    Args:
        times: `[times_size]` float32 as they came back; anything at all where the call is fresh.
        fresh: bool scalar: the call begins a picture.
        share: of the tokens.
        extrapolate: α; 0 predicts that nothing changes, and 1 is for one that is fitted later.
        computes: how many classes this call computes: by default those of the share.
        call: scalar, of the picture, from 0; by default one more than that before. Whoever is left
            out of some is told, so that what it remembers is as old as it is.

    Returns:
        The new times, the first computed class (int64 scalar), `[q + 1]` whether a class is
        computed, `[q + 1]` float32 by how much of the difference of its two values each is carried
        on. The last is text, which is computed whenever anything is.
    """
    classes = share.classes
    computes = share.computed if computes is None else computes
    ticks, turn, (last, before, known) = times[0], times[1], times[2:].view(3, classes + 1)
    now = torch.where(fresh, 0, ticks + 1) if call is None else call.to(times.dtype)
    first = torch.where(fresh, 0, turn).long()
    ahead = torch.arange(classes, device=times.device) - first
    text = torch.full((1,), computes > 0, device=times.device)
    due = torch.cat((ahead % classes < computes, text))
    span = torch.where(last == before, 1.0, last - before)
    follows = ~fresh & (known > 1) & (last != before)
    carried = torch.where(follows, extrapolate * ((now - last) / span).clamp(0, LIMIT), 0.0)
    counted = torch.where(fresh, 0.0, known) + due
    new_before = torch.where(due, last, before)
    state = (torch.where(due, now, last), new_before, counted.clamp(max=2))
    anew = (now.expand_as(last), now.expand_as(last), counted)
    kept = [torch.where(fresh, a, b) for a, b in zip(anew, state, strict=True)]
    after = torch.stack((now, ((first + computes) % classes).to(now.dtype)))
    new = torch.cat((after, *kept))
    # A call that computes nothing begins nothing.
    return new if computes else torch.where(fresh, times, new), first, due, carried


def tables(
    cells: Tensor, first: Tensor, share: Share, moves: Tensor, gauss: Tensor
) -> tuple[Tensor, ...]:
    """What a call computes of a grid: `[D]` rows, `[N]` classes, `[N, M]` neighbours and weights.

    See `rotation.neighbours` for the last two, and `rotation.stencil` for the last arguments.
    """
    order, slots = rotation.slots_of(cells, share)
    rows = rotation.computed_rows(order, first, share)
    classes = slots // share.length(cells.shape[0])
    return rows, classes, *rotation.neighbours(cells, slots, first, share, moves, gauss)


def tables_of_positions(
    positions: Tensor, first: Tensor, share: Share, moves: Tensor, gauss: Tensor
) -> tuple[Tensor, ...]:
    """`tables` where the grid is data: `[N, k]` position ids."""
    return tables(rotation.cells_of(positions), first, share, moves, gauss)


@functools.lru_cache(maxsize=16)
def every_table(grid: tuple[int, ...], share: Share) -> tuple[Tensor, ...]:
    """`tables` of every first class, `[q, …]`; classes, which are the same for all, as they are."""
    cells, around = rotation.grid_cells(grid), rotation.stencil(share, len(grid))
    firsts = map(torch.tensor, range(share.classes))
    found = [tables(cells, first, share, *around) for first in firsts]
    rows, classes, near, weights = zip(*found, strict=True)
    return torch.stack(rows), classes[0], torch.stack(near), torch.stack(weights)


def by_token(
    classes: Tensor, weights: Tensor, due: Tensor, carried: Tensor, fresh: Tensor, gain: float
) -> tuple[Tensor, Tensor, Tensor]:
    """For every token: the weights with γ in them, how far it is carried on, whether it is stored.

    Returns:
        `[N, M]` and `[N, 1]` float32, `[N, 1]` bool.
    """
    mine = due[classes].unsqueeze(1)
    gained = torch.where(mine | fresh, weights, gain * weights)
    return gained, carried[classes].unsqueeze(1), mine | fresh


def recall(
    computed: Tensor,
    last: Tensor,
    before: Tensor | None,
    trend: Tensor | None,
    heard: Tensor | None,
    rows: Tensor,
    near: Tensor,
    weights: Tensor,
    carried: Tensor,
    stored: Tensor,
    fresh: Tensor,
) -> tuple[Tensor, ...]:
    """What all tokens add to the residual stream, and what is remembered of it.

    Args:
        computed: `[B, D, C]`.
        last: `[B, N, C]` last values, in its dtype.
        before: those before them, or None for a history of one.
        trend: `[B]` α of each item as it was last fitted, or None where it is in `carried`.
        heard: `[B, N, C]` what neighbours said of each token last, or None where no step rests.
        rows: `[D]` the computed tokens.
        near: `[N, M]` places among them.
        weights: `[N, M]`, from `by_token`, as are `carried` and `stored`.
        fresh: bool scalar; what is remembered is then not looked at, be it NaN.

    Returns:
        `[B, N, C]` in the dtype of `computed`, and of what is remembered the new last values,
        those before them, α and what neighbours say, without what is None.
    """
    past = last.index_select(1, rows), None if before is None else before.index_select(1, rows)
    if trend is not None:
        trend = _fitted(computed, *past, trend, carried[rows], fresh)
    there = _predicted(*past, trend, carried[rows], fresh)
    change = (computed - there).to(computed.dtype)
    said = torch.zeros((), device=computed.device)
    for place in range(near.shape[1]):
        said = said + weights[:, place : place + 1] * change.index_select(1, near[:, place])
    result = (_predicted(last, before, trend, carried, fresh) + said).to(computed.dtype)
    found = [result, torch.where(stored, result, last)]
    if before is not None:
        # A picture's first values are both: nothing of another one is left to be read later.
        found.append(torch.where(fresh, result, torch.where(stored, last, before)))
    if trend is not None:
        found.append(trend)
    if heard is not None:
        found.append(torch.where(stored, 0.0, said).to(heard.dtype))
    return tuple(found)


def predict(
    last: Tensor,
    before: Tensor | None,
    trend: Tensor | None,
    heard: Tensor | None,
    carried: Tensor,
    fresh: Tensor,
) -> Tensor:
    """What tokens are taken to add to the residual stream where none is computed, `[B, N, C]`.

    Args:
        last: `[B, N, C]` last values, in its dtype.
        before: those before them, or None.
        trend: `[B]` α of each item as it was last fitted, or None where it is in `carried`.
        heard: `[B, N, C]` what neighbours said when tokens were last computed, or None: it still
            holds, for what they said of a token is known of no later step.
        carried: `[N, 1]` or a scalar: how far each token is carried on.
        fresh: bool scalar; nothing is remembered then, and nothing is added.
    """
    found = _predicted(last, before, trend, carried, fresh)
    if heard is not None:
        found = found + torch.where(fresh, 0.0, heard)
    return found.to(last.dtype)


def learn(
    computed: Tensor,
    last: Tensor,
    before: Tensor | None,
    trend: Tensor | None,
    heard: Tensor | None,
    carried: Tensor,
    fresh: Tensor,
) -> list[Tensor]:
    """The new memory where all tokens are computed, without what is None.

    Returns:
        `[B, N, C]` last values, as many before them, `[B]` α, and that neighbours say nothing.
    """
    found = [computed]
    if before is not None:
        found.append(torch.where(fresh, computed, last))
    if trend is not None:
        found.append(_fitted(computed, last, before, trend, carried, fresh))
    if heard is not None:
        found.append(torch.zeros_like(heard))
    return found


def _predicted(
    last: Tensor, before: Tensor | None, trend: Tensor | None, carried: Tensor, fresh: Tensor
) -> Tensor:
    if before is not None:
        reach = carried if trend is None else carried * _bent(carried, trend)
        last = last + _ahead(last, before, reach)
    return torch.where(fresh, 0.0, last)


def _bent(carried: Tensor, trend: Tensor) -> Tensor:
    """`[B, N, 1]`: how much of its trend a token follows that is carried on so far."""
    return 1 + (trend.view(-1, 1, 1) - 1) * (1 + carried) / 2


def _ahead(last: Tensor, before: Tensor, carried: Tensor) -> Tensor:
    """What a trend adds; nothing where it is not followed, be what was before NaN."""
    return torch.where(carried == 0, 0.0, carried * (last - before))


def _fitted(
    computed: Tensor,
    last: Tensor,
    before: Tensor | None,
    trend: Tensor,
    carried: Tensor,
    fresh: Tensor,
) -> Tensor:
    """`[B]`: the α with which these tokens would have been predicted best, from their own past."""
    assert before is not None
    wide = max(last.dtype, trend.dtype, key=lambda dtype: dtype.itemsize)
    last, before = last.to(wide), before.to(wide)
    ahead = _ahead(last, before, carried)
    bend = ahead * (1 + carried) / 2
    agrees, size = ((computed - last - ahead) * bend).sum((1, 2)), (bend * bend).sum((1, 2))
    found = torch.where(size > 0, (1 + agrees / size).clamp(0, STEEPEST).to(trend.dtype), trend)
    return torch.where(fresh, UNFITTED, found)
