"""Which tokens a step computes, as tensor arithmetic: traced where the grid is data, run once else.

The same as `toma_fx.refresh.Rotation`, whose formulas it follows, without a loop over tokens. `N`
tokens in `q` classes of `L = ⌈N / q⌉`; a step computes `p` classes, `D = p·L` tokens; a token that
is not computed hears of `M` that are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from toma_fx.refresh import NEIGHBOURS, SKEW, offsets
from toma_fx.share import Share


def grid_cells(grid: Sequence[int]) -> Tensor:
    """`[N, 2 … 3]` int64 coordinates of a grid's tokens, row by row."""
    sides = [torch.arange(side) for side in grid]
    return torch.stack(torch.meshgrid(*sides, indexing="ij"), -1).flatten(0, -2)


def cells_of(positions: Tensor) -> Tensor:
    """`[N, k]` position ids of any dtype to whole numbers from 0."""
    return (positions - positions.amin(0, keepdim=True)).round().long()


def slots_of(cells: Tensor, share: Share) -> tuple[Tensor, Tensor]:
    """Classes of equal size: tokens sorted by lattice and cut into runs of `L`.

    Returns:
        `[q·L]` tokens class by class, the last one repeated where they run out; `[N]` each token's
        place among them.
    """
    tokens = cells.shape[0]
    order = torch.argsort(_lattice(cells, share), stable=True)
    place = torch.arange(tokens, device=cells.device)
    slots = torch.empty_like(place).scatter(0, order, place)
    missing = share.length(tokens) * share.classes - tokens
    return torch.cat((order, order[-1:].expand(missing))), slots


def computed_rows(order: Tensor, first: Tensor, share: Share) -> Tensor:
    """`[D]` tokens that are computed where class `first` is the first of a step."""
    due = (first + torch.arange(share.computed, device=order.device)) % share.classes
    return order.view(share.classes, -1)[due].reshape(-1)


def places(slots: Tensor, first: Tensor, share: Share) -> Tensor:
    """`[N]` where a token stands among the computed ones; `D` or more where it is none of them."""
    length = share.length(slots.shape[0])
    return (slots - first * length) % (length * share.classes)


def neighbours(
    cells: Tensor, slots: Tensor, first: Tensor, share: Share, moves: Tensor, gauss: Tensor
) -> tuple[Tensor, Tensor]:
    """Whom every token hears of: `[N, M]` places among the computed, `[N, M]` float32 weights.

    Weights of a token add up to 1; a computed one hears of itself. `moves` and `gauss` are those
    of `stencil`, on the device of the cells.
    """
    tokens, kept = cells.shape[0], share.kept(cells.shape[0])
    own = places(slots, first, share)
    ahead = (_lattice(cells, share) - first) % share.classes
    wanted = cells.unsqueeze(1) + moves[ahead]
    other = _find(cells, wanted)
    there = (cells[other] == wanted).all(-1) & (own[other] < kept)
    weights = gauss[ahead] * there
    total = weights.sum(1, keepdim=True)
    # A computed token, or one with nobody around: all its weight on one place.
    mine = (own < kept).unsqueeze(1)
    rank = torch.arange(tokens, device=cells.device) * share.length(tokens) // tokens
    lone = torch.where(mine, own.unsqueeze(1), rank.unsqueeze(1))
    single = torch.arange(NEIGHBOURS, device=cells.device) == 0
    alone = mine | (total == 0)
    heard = torch.where(alone, lone, torch.where(there, own[other], 0))
    shares = torch.where(alone, single.float(), weights / torch.where(alone, 1.0, total))
    return heard, shares


def _lattice(cells: Tensor, share: Share) -> Tensor:
    first = 0 if cells.shape[1] == 2 else 1
    y, x = cells[:, first], cells[:, first + 1]
    slow = cells.sum(1) - y - x
    return (x + SKEW[share.classes] * y + slow) % share.classes


def _find(cells: Tensor, wanted: Tensor) -> Tensor:
    """`[N, M]` a token that may stand at each wanted cell: the caller compares.

    Cells are numbered row by row. In a full grid the numbers are those of its tokens; elsewhere
    two cells may share one, and the first token has it.
    """
    tokens = cells.shape[0]
    sides = cells.amax(0) + 1

    def number(places: Tensor) -> Tensor:
        found = places[..., 0]
        for column in range(1, cells.shape[1]):
            found = found * sides[column] + places[..., column]
        return found % tokens

    index = torch.arange(tokens, device=cells.device)
    table = torch.zeros_like(index).scatter_reduce(
        0, number(cells), index, "amin", include_self=False
    )
    return table[number(wanted)]


def stencil(share: Share, columns: int) -> tuple[Tensor, Tensor]:
    """`[q, M, k]` int64 moves from each class, counted from the first, to its neighbours; `[q, M]`
    float32 what each counts for, none where there are fewer."""
    first = 0 if columns == 2 else 1
    moves, gauss = [], []
    for ahead in range(share.classes):
        near = offsets(share, ahead)
        cells = [[0] * first + [dy, dx] + [0] * (columns - first - 2) for dy, dx in near]
        weights = torch.tensor([-(dy**2 + dx**2) / 2 for dy, dx in near]).exp().tolist()
        missing = NEIGHBOURS - len(near)
        moves.append(cells + [[0] * columns] * missing)
        gauss.append(weights + [0.0] * missing)
    return torch.tensor(moves), torch.tensor(gauss)
