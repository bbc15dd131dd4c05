"""Distances between pictures, pair by pair and set by set, with confidence intervals."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy import linalg, stats
from skimage.metrics import structural_similarity
from torch import Tensor

_BEST_PSNR = 100.0
"""dB given to equal pictures, whose ratio has no bound; then means stay finite."""


class Estimate(NamedTuple):
    """A mean and its 95 % confidence interval."""

    mean: float
    low: float
    high: float


def psnr(made: Tensor, reference: Tensor) -> Tensor:
    """`[N]` dB of pictures `[N, 3, h, w]` in [0, 1], at most 100; more is closer."""
    error = (made - reference).double().square().flatten(1).mean(1)
    return (-10 * error.clamp(min=10 ** (-_BEST_PSNR / 10)).log10()).float()


def ssim(made: Tensor, reference: Tensor) -> Tensor:
    """`[N]` structural similarity of colour pictures; 1 is equal."""
    pairs = zip(made.numpy(), reference.numpy(), strict=True)
    found = [structural_similarity(a, b, channel_axis=0, data_range=1.0) for a, b in pairs]
    return torch.tensor(found, dtype=torch.float32)


def cosine_distance(made: Tensor, reference: Tensor) -> Tensor:
    """`[N]` of features `[N, D]`: 0 is equal, 1 is unrelated."""
    return 1 - torch.nn.functional.cosine_similarity(made.double(), reference.double()).float()


def perceptual_distance(made: list[Tensor], reference: list[Tensor]) -> Tensor:
    """`[N]` in the form of LPIPS: unit features of every layer, squared, averaged over places.

    LPIPS proper weighs channels by what people judged; here all weigh alike.

    Args:
        made: one `[N, C, h, w]` a layer.
        reference: likewise.
    """
    layers = zip(made, reference, strict=True)
    return sum(
        ((_unit(a) - _unit(b)).square().sum(1).mean((1, 2)) for a, b in layers), torch.zeros(())
    )


def bootstrap(values: Tensor, seed: int = 0) -> Estimate:
    """The mean of `[N]` values; pictures are drawn anew 2,000 times."""
    numbers = values.double().numpy()
    mean = float(numbers.mean())
    if len(numbers) < 2 or np.ptp(numbers) == 0:
        return Estimate(mean, mean, mean)
    found = stats.bootstrap(
        (numbers,), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(seed)
    )
    low, high = found.confidence_interval
    return Estimate(mean, float(low), float(high))


def kid(made: Tensor, data: Tensor, subsets: int = 100, size: int = 100, seed: int = 0) -> Estimate:
    """Kernel distance of two sets of features `[N, D]`, without bias (Bińkowski et al., 2018).

    Args:
        made: of generated pictures.
        data: of real ones.
        subsets: drawn, whose mean is the estimate and whose spread gives the interval.
        size: of a subset; at most that of the smaller set.
        seed: of the draws.
    """
    size = min(size, len(made), len(data))
    draw = np.random.default_rng(seed)
    found = np.array(
        [_mmd(_some(made, size, draw), _some(data, size, draw)) for _ in range(subsets)]
    )
    spread = 1.96 * found.std() / math.sqrt(subsets)
    return Estimate(float(found.mean()), float(found.mean() - spread), float(found.mean() + spread))


def fid(made: Tensor, data: Tensor) -> float:
    """Fréchet distance of two sets of features `[N, D]`; needs more pictures than dimensions."""
    a, b = made.double().numpy(), data.double().numpy()
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(first @ second)
    shift = np.square(a.mean(0) - b.mean(0)).sum()
    return float(shift + np.trace(first) + np.trace(second) - 2 * np.trace(np.real(root)))


def _unit(features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features, dim=1, eps=1e-8)


def _some(features: Tensor, size: int, draw: np.random.Generator) -> Tensor:
    return features[torch.from_numpy(draw.choice(len(features), size, replace=False))].double()


def _mmd(a: Tensor, b: Tensor) -> float:
    """The unbiased squared mean discrepancy under `(aᵀb / D + 1)³`."""
    n = len(a)

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: Tensor) -> Tensor:
        found = kernel(x, x)
        return (found.sum() - found.diagonal().sum()) / (n * (n - 1))

    return float(within(a) + within(b) - 2 * kernel(a, b).mean())
