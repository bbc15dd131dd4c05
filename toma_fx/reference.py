"""The mathematics of ToMA in plain PyTorch: the specification of every faster path.

Shapes: `P` windows (batch items × windows of one item), `n` tokens a window, `d` destinations a
window, `C` channels. Source: Lu et al., "ToMA: Token Merge with Attention for Diffusion Models",
arXiv 2509.10918, sections 4.1 to 4.3, and its public code. This module imports torch alone.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# Similarities are compared in units of 2⁻¹⁶, as integers. Two mutual nearest neighbours have
# exactly equal gains; in floating point rounding noise would pick between them, so that no two
# devices agreed. Integer sums are exact in any order. Costs below 1e-5 of the objective.
_HALF_UNIT = 2**15
_LARGEST_INT32_WINDOW = 2**13  # gains of a window reach n · 2¹⁷


def similarity(tokens: Tensor) -> Tensor:
    """Cosine similarity within windows, in IEEE float32 (no TF32, no autocast).

    Args:
        tokens: `[P, n, C]`, any floating dtype.

    Returns:
        `[P, n, n]` float32.
    """
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.autocast(tokens.device.type, enabled=False):
            return cosines(tokens)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


def cosines(tokens: Tensor) -> Tensor:
    """`similarity` at whatever precision the surroundings allow: for graphs that a CPU runs."""
    unit = functional.normalize(tokens.float(), dim=-1)
    return unit @ unit.transpose(-1, -2)


def fixed_point(similarities: Tensor) -> Tensor:
    """Similarities as symmetric integers in units of 2⁻¹⁶, the diagonal exactly one.

    Args:
        similarities: `[P, n, n]` float32.

    Returns:
        `[P, n, n]` int32, or int64 for windows above 8,192 tokens.
    """
    n = similarities.shape[-1]
    dtype = torch.int32 if n <= _LARGEST_INT32_WINDOW else torch.int64
    half = (similarities * _HALF_UNIT).round().to(dtype)
    whole = half + half.transpose(-1, -2)
    whole.diagonal(dim1=-2, dim2=-1).fill_(2 * _HALF_UNIT)
    return whole


def greedy(units: Tensor, count: int, valid: Tensor | None = None) -> Tensor:
    """Facility location by greedy selection, at least `1 − 1/e` of the best set's objective.

    Maximises `Σ_j max_{i∈A} units_ij`: the first pick is the largest row sum, each later pick the
    largest gain `Σ_j relu(units_ij − covered_j)`. Ties go to the lowest index.

    Args:
        units: `[P, n, n]` from `fixed_point`, or `[P, H, n, n]`: `H` items share one selection
            and their gains are added. `n²·count` additions a window.
        count: destinations to pick, `1 … n`.
        valid: `[P, n]` bool; False tokens neither count nor are picked while valid ones remain.

    Returns:
        `[P, count]` int64, sorted, without repetition.
    """
    if units.dim() == 3:
        units = units.unsqueeze(1)
    P, _, n, _ = units.shape
    if not 1 <= count <= n:
        raise ValueError(f"count must lie in 1 … {n}, not {count}")
    taken = torch.zeros(P, n, dtype=torch.int8, device=units.device)
    if valid is not None:
        units = units.masked_fill(~valid[:, None, None, :], 0)
        taken += (~valid).to(torch.int8)
    rows = torch.arange(P, device=units.device)
    never = torch.iinfo(units.dtype).min
    gains = units.sum((1, 3), dtype=units.dtype)
    covered = units.new_empty(0)
    short = torch.empty_like(units)  # by how much each token is short of each candidate; reused
    picks = []
    for step in range(count):
        # A taken token's rank is below every gain; a taken pad's is above a taken token's.
        gains = torch.where(taken == 0, gains, never + (taken == 1).to(units.dtype))
        pick = gains.argmax(-1)
        picks.append(pick)
        taken[rows, pick] += 2
        row = units[rows, :, pick]
        covered = row if step == 0 else torch.maximum(covered, row)
        if step + 1 < count:
            torch.sub(units, covered.unsqueeze(2), out=short)
            gains = short.clamp_min_(0).sum((1, 3), dtype=units.dtype)
    return torch.stack(picks, -1).sort(-1).values


def select_destinations(tokens: Tensor, count: int, valid: Tensor | None = None) -> Tensor:
    """Pick the `count` tokens of each window that represent it best.

    Args:
        tokens: `[P, n, C]`, any floating dtype.
        count: destinations a window; a larger value costs `n²` operations each.
        valid: `[P, n]` bool, False for padding.

    Returns:
        `[P, count]` int64, sorted, without repetition; the same on every device.

    Raises:
        ValueError: `count` is not in `1 … n`.
    """
    return greedy(fixed_point(similarity(tokens)), count, valid)


def assignment(
    tokens: Tensor, destinations: Tensor, temperature: float, valid: Tensor | None = None
) -> Tensor:
    """How each token's mass of one is spread over the destinations: `softmax_d(S / τ)`.

    Args:
        tokens: `[P, n, C]`.
        destinations: `[P, d]` int64 from `select_destinations`.
        temperature: τ; a larger value blends more destinations into a token.
        valid: `[P, n]` bool; padding carries no mass.

    Returns:
        `[P, d, n]` float32, columns summing to one (to zero for padding).
    """
    return spread(similarity(tokens), destinations, temperature, valid)


def spread(
    similarities: Tensor, destinations: Tensor, temperature: float, valid: Tensor | None = None
) -> Tensor:
    """`assignment` from similarities `[P, n, n]` that are at hand."""
    rows = destinations.unsqueeze(-1).expand(-1, -1, similarities.shape[-1])
    weights = torch.softmax(similarities.gather(1, rows) / temperature, dim=1)
    return weights if valid is None else weights * valid.unsqueeze(1)


def merge_matrix(weights: Tensor) -> Tensor:
    """`[P, d, n]` assignment to the matrix whose rows are weighted means, `A / A.sum(-1)`."""
    return weights / weights.sum(-1, keepdim=True)


def unmerge_matrix(weights: Tensor, method: str = "transpose") -> Tensor:
    """`[P, d, n]` assignment to the `[P, n, d]` matrix that restores full length.

    `"transpose"` is `Aᵀ` (the public code); `"pinv"` is `Mᵀ(MMᵀ)⁻¹` with `M = merge_matrix(A)`
    (the paper's text), through a symmetric pseudo-inverse, so that repeated tokens do no harm.
    """
    if method == "transpose":
        return weights.transpose(-1, -2)
    merging = merge_matrix(weights)
    gram = merging @ merging.transpose(-1, -2)
    return merging.transpose(-1, -2) @ torch.linalg.pinv(gram, hermitian=True)


def merge(tokens: Tensor, weights: Tensor) -> Tensor:
    """`[P, n, C]` tokens to `[P, d, C]` weighted means, in the dtype of `tokens`."""
    return merge_matrix(weights).to(tokens.dtype) @ tokens


def unmerge(merged: Tensor, weights: Tensor, method: str = "transpose") -> Tensor:
    """`[P, d, C]` merged tokens back to `[P, n, C]`, in the dtype of `merged`."""
    return unmerge_matrix(weights, method).to(merged.dtype) @ merged
