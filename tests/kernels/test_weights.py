from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from toma_fx import reference
from toma_fx.operations import pad_mask

POISON = -7.0


def buffers(batch: int, windows: int, size: int, count: int, dtype: torch.dtype) -> list[Tensor]:
    total = batch * windows
    return [
        torch.full((total, count, size), POISON, dtype=dtype),
        torch.full((total, size, count), POISON, dtype=dtype),
    ]


def check_weights(
    size: int, count: int, dtype: torch.dtype, pads: int, temperature: float, phase: int
) -> None:
    from toma_fx.kernels.weights import launch_weights

    torch.manual_seed(size)
    tokens = torch.randn(2 * 3, size, 16)
    picks = torch.rand(2 * 3, size - 1).argsort(-1)[:, :count].sort(-1).values
    valid = pad_mask(2, 3, size, 3 * size - pads, tokens.device)
    merging, unmerging = buffers(2, 3, size, count, dtype)
    launch_weights(
        reference.similarity(tokens),
        torch.tensor(phase, dtype=torch.int32),
        picks.view(2, 3, count),
        merging,
        unmerging,
        pads,
        temperature,
    )
    weights = reference.assignment(tokens, picks, temperature, valid)
    expected = (reference.merge_matrix(weights), reference.unmerge_matrix(weights))
    tolerance = {"rtol": 1e-4, "atol": 1e-6} if dtype == torch.float32 else {}
    for found, value in zip((merging, unmerging), expected, strict=True):
        torch.testing.assert_close(found, value.to(dtype), **tolerance)


def check_reuse() -> None:
    from toma_fx.kernels.weights import launch_weights

    merging, unmerging = buffers(1, 1, 16, 4, torch.float32)
    similarities = reference.similarity(torch.randn(1, 16, 8))
    picks = torch.arange(4).view(1, 1, 4)
    phase = torch.tensor(0, dtype=torch.int32)
    launch_weights(similarities, phase, picks, merging, unmerging, 0, 0.1)
    assert (merging == POISON).all()
    assert (unmerging == POISON).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize(("size", "count", "pads"), [(5, 1, 0), (16, 8, 2), (64, 32, 0)])
def test_equals_the_reference(
    interpreter: Callable[..., Any],
    size: int,
    count: int,
    pads: int,
    temperature: float,
    dtype: torch.dtype,
) -> None:
    interpreter(check_weights, size, count, dtype, pads, temperature, 1)


def test_large_windows_in_blocks_of_columns(interpreter: Callable[..., Any]) -> None:
    interpreter(check_weights, 200, 130, torch.float32, 1, 0.05, 2)


def test_phase_0_writes_nothing(interpreter: Callable[..., Any]) -> None:
    interpreter(check_reuse)
