"""Whether tensors are the same as at another call, or close by, without keeping them.

On the device and without a wait: the guard (`toma_fx.guard`) compares what is read here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SAMPLES = 256
"""Elements of a tensor that tell whether another is close by."""

_WORD = 2**32 - 1


def fingerprint(tensors: Sequence[Tensor]) -> Tensor:
    """Of all bits of each tensor, float32 `[12 · count]`; equal where every element is.

    The bits are summed as integers, with weights that depend on the place, so that the result is
    exact in any order and on every device. One element that changes always changes it; two texts
    that differ in many share it once in about 2⁶⁰. A NaN makes it NaN, which equals nothing. The
    signs of zeros count. One pass over the tensor, of up to 2²⁹ elements.
    """
    words = [_words(tensor) for tensor in tensors]
    weights = _weights(max(len(parts) for parts, _ in words), words[0][0].device)
    sums = torch.stack([_sums(*found, weights) for found in words]).unsqueeze(-1)
    shifts = torch.arange(3, device=sums.device) * 20
    digits = ((sums[:, :4] >> shifts) & 0xFFFFF).float()  # float32 holds 20 bits, and three do
    return torch.where(sums[:, 4:] > 0, torch.nan, digits).reshape(-1)


def samples(tensors: Sequence[Tensor]) -> Tensor:
    """`SAMPLES` evenly spaced elements of each tensor, as float32 `[count, SAMPLES]`."""
    parts = []
    for tensor in tensors:
        places = torch.arange(SAMPLES, device=tensor.device) * (tensor.numel() - 1)
        parts.append(tensor.reshape(-1)[places // (SAMPLES - 1)].float())
    return torch.stack(parts)


def close_by(old: Tensor, new: Tensor, where: Tensor) -> Tensor:
    """Whether samples lie on one trajectory: `‖new − old‖² < ½(‖new‖² + ‖old‖²)`, over `where`.

    Other noise has `1 ± 0.06` in place of the ½. Stages of one step have 0.1 at most, 0.3 where an
    ancestral sampler makes four steps (simulated, `tests/test_guard_schedulers.py`).

    Args:
        old: `[S, M]`.
        new: `[M]`.
        where: `[M]` bool, the columns that are compared.

    Returns:
        `[S]` bool.
    """
    far = (new - old).square().where(where, 0).sum(1)
    size = (new.square() + old.square()).where(where, 0).sum(1)
    return 2 * far < size


def _sums(words: Tensor, broken: Tensor, weights: Tensor) -> Tensor:
    """`[5]` int64: sums of both halves of all words by two weights of each place, and of NaNs.

    One reduction: a compiler makes two kernels of it at most.
    """
    row = torch.arange(5, device=words.device).unsqueeze(1)
    half = (words >> (row // 2 * 16)) & 0xFFFF
    # At most 2¹⁶ · 2¹⁵ · 2²⁹: no sum overflows.
    return torch.where(row < 4, half * weights[:, : len(words)], broken.long()).sum(1)


def _weights(count: int, device: torch.device) -> Tensor:
    """`[5, count]` int64 in `[1, 2¹⁵]`: by place, so that those of the longest tensor serve all."""
    row = torch.arange(5, device=device).unsqueeze(1)
    return ((_mixed(count, device) >> (row % 2 * 16)) & 0x7FFF) + 1


def _words(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """The bits of all elements as int64 in `[0, 2³²)`, and which are NaN.

    Types of 64 bits give two words each.
    """
    flat = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).reshape(-1)
    broken = flat != flat
    if flat.dtype == torch.float64:
        flat = flat.view(torch.int64)
    elif flat.is_floating_point():
        flat = flat.float().view(torch.int32)
    if flat.dtype == torch.int64:
        return torch.cat((flat & _WORD, (flat >> 32) & _WORD)), torch.cat((broken, broken))
    return flat.long() & _WORD, broken


def _mixed(count: int, device: torch.device) -> Tensor:
    """A pseudo-random number of 32 bits for each place: a counter, mixed."""
    mixed = torch.arange(1, count + 1, device=device) * 0x9E3779B1 & _WORD
    mixed = (mixed ^ (mixed >> 15)) * 0x5BD1E995 & _WORD
    return mixed ^ (mixed >> 13)
