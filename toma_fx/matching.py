"""The mathematics of ToMeSD and ToFu in plain PyTorch: the specification of their passes.

Bipartite soft matching: the first token of each cell is a destination; of the others, those
nearest to a destination go into it. Source: Bolya and Hoffman, "Token Merging for Fast Stable
Diffusion", arXiv 2303.17604, section 4, without its random choice inside cells; Kim et al.,
"Token Fusion", arXiv 2312.01026, section 3. This module imports torch alone.

Shapes: `B` items, `N` tokens, `W` cells with a destination each, `r` sources that are merged away,
`D = N − r` tokens left: the destinations first, then the tokens that stay single.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def match(
    tokens: Tensor, heads: Tensor, others: Tensor, sources: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Which tokens are merged away, and into which destination.

    Args:
        tokens: `[B, N, C]`; `(N − W)·W·C` multiply-adds an item.
        heads: `[W]` int64, the destinations.
        others: `[N − W]` int64, all other tokens.
        sources: `r`, at most `N − W`; a larger value merges less similar tokens.

    Returns:
        `[B, r]` merged tokens, `[B, r]` their cells, `[B, N − W − r]` tokens that stay single.
    """
    unit = functional.normalize(tokens, dim=-1)
    scores = unit[:, others] @ unit[:, heads].transpose(-1, -2)
    best, cells = scores.max(-1)
    ranked = best.argsort(-1, descending=True)
    merged, single = ranked[:, :sources], ranked[:, sources:]
    return others[merged], cells.gather(1, merged), others[single]


def representatives(heads: Tensor, single: Tensor) -> Tensor:
    """`[B, D]`: the token that stands in each place after merging."""
    return torch.cat((heads.expand(single.shape[0], -1), single), 1)


def places(heads: Tensor, merged: Tensor, cells: Tensor, single: Tensor) -> Tensor:
    """`[B, N]`: where each token's value is found after merging."""
    batch, count = single.shape
    first = torch.arange(heads.shape[0], device=heads.device)
    rest = torch.arange(count, device=heads.device) + heads.shape[0]
    tokens = torch.cat((heads.expand(batch, -1), single, merged), 1)
    where = torch.cat((first.expand(batch, -1), rest.expand(batch, -1), cells), 1)
    return torch.empty_like(where).scatter(1, tokens, where)


def prune(tokens: Tensor, rows: Tensor) -> Tensor:
    """`[B, N, C]` to `[B, D, C]`: merged tokens are left out."""
    return tokens.gather(1, _wide(rows, tokens))


def average(tokens: Tensor, rows: Tensor, merged: Tensor, cells: Tensor) -> Tensor:
    """`[B, N, C]` to `[B, D, C]`: each destination is the mean of itself and what joins it."""
    joining = tokens.gather(1, _wide(merged, tokens))
    sums = prune(tokens, rows).scatter_add(1, _wide(cells, tokens), joining)
    return sums / _counts(rows, cells, tokens)


def norm_preserving(tokens: Tensor, rows: Tensor, merged: Tensor, cells: Tensor) -> Tensor:
    """MLERP: the direction of the mean, with the largest norm among the tokens merged."""
    mean = average(tokens, rows, merged, cells)
    norms = tokens.norm(dim=-1)
    largest = norms.gather(1, rows).scatter_reduce(1, cells, norms.gather(1, merged), "amax")
    return functional.normalize(mean, dim=-1) * largest.unsqueeze(-1)


def spread_back(merged: Tensor, where: Tensor) -> Tensor:
    """`[B, D, C]` back to `[B, N, C]` by copying, from `places`."""
    return merged.gather(1, _wide(where, merged))


def _wide(index: Tensor, like: Tensor) -> Tensor:
    return index.unsqueeze(-1).expand(-1, -1, like.shape[-1])


def _counts(rows: Tensor, cells: Tensor, like: Tensor) -> Tensor:
    ones = torch.ones(rows.shape, dtype=like.dtype, device=like.device)
    return ones.scatter_add(1, cells, torch.ones_like(cells, dtype=like.dtype)).unsqueeze(-1)
