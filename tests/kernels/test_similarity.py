from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from toma_fx import reference
from toma_fx.operations import windowed
from toma_fx.windows import Windows

POISON = -7.0


def check_similarity(
    windows: Windows, channels: int, dtype: torch.dtype, ordered: bool, strided: bool
) -> None:
    from toma_fx.kernels.similarity import launch_similarity

    torch.manual_seed(windows.tokens + channels)
    hidden = torch.randn(2, windows.tokens, channels).to(dtype)
    if strided:  # batch and tokens swapped in memory, channels a slice of wider ones
        hidden = torch.randn(windows.tokens, 2, channels + 3).to(dtype)[..., 2:-1].transpose(0, 1)
    order = torch.randperm(windows.tokens)[torch.tensor(windows.slot_ranks())] if ordered else None
    found = torch.full((2 * windows.count, windows.size, windows.size), POISON)
    phase = torch.tensor(1, dtype=torch.int32)
    launch_similarity(hidden, order, phase, found, windows.count)
    expected = reference.similarity(windowed(hidden, order, windows.size))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    assert torch.equal(found, found.transpose(-1, -2)), "the greedy kernels rely on symmetry"


def check_zeros_and_repeats() -> None:
    from toma_fx.kernels.similarity import launch_similarity

    hidden = torch.zeros(1, 40, 8)
    hidden[0, 10:20] = torch.randn(8)
    found = torch.full((1, 40, 40), POISON)
    launch_similarity(hidden, None, torch.tensor(2, dtype=torch.int32), found, 1)
    torch.testing.assert_close(found, reference.similarity(hidden))


def check_reuse() -> None:
    from toma_fx.kernels.similarity import launch_similarity

    found = torch.full((1, 16, 16), POISON)
    launch_similarity(torch.randn(1, 16, 8), None, torch.tensor(0, dtype=torch.int32), found, 1)
    assert (found == POISON).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("windows", "channels", "ordered"),
    [
        (Windows(5, 1, 5, 2), 7, False),
        (Windows(48, 3, 16, 8), 40, True),
        (Windows(46, 3, 16, 8), 64, True),  # two pads
        (Windows(128, 2, 64, 32), 33, True),
    ],
)
def test_equals_the_reference(
    interpreter: Callable[..., Any],
    windows: Windows,
    channels: int,
    ordered: bool,
    dtype: torch.dtype,
) -> None:
    interpreter(check_similarity, windows, channels, dtype, ordered, False)


@pytest.mark.parametrize("ordered", [False, True])
def test_reads_any_strides(interpreter: Callable[..., Any], ordered: bool) -> None:
    interpreter(check_similarity, Windows(32, 2, 16, 8), 20, torch.float32, ordered, True)


def test_zeros_and_repeated_tokens(interpreter: Callable[..., Any]) -> None:
    interpreter(check_zeros_and_repeats)


def test_phase_0_writes_nothing(interpreter: Callable[..., Any]) -> None:
    interpreter(check_reuse)
