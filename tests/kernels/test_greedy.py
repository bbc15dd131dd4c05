from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from toma_fx import reference
from toma_fx.operations import pad_mask

POISON = -7


def mirrored(similarities: Tensor) -> Tensor:
    """Symmetric to the last bit, as the similarity kernel leaves them."""
    upper = similarities.triu()
    return upper + upper.transpose(-1, -2) - torch.diag_embed(upper.diagonal(dim1=1, dim2=2))


def tokens_of(kind: str, windows: int, size: int) -> Tensor:
    tokens = torch.randn(windows, size, 24)
    if kind == "repeated":  # every token twice or more: gains tie everywhere
        tokens = tokens[:, torch.randint(0, max(1, size // 3), (size,))]
    if kind == "equal":
        tokens = tokens[:, :1].expand(-1, size, -1)
    if kind == "opposite":
        tokens[:, 1::2] = -tokens[:, : size // 2]
    if kind == "central":  # the pad would represent its window best
        tokens[:, -1] = tokens[:, :-1].mean(1)
    return tokens


def similarities_of(kind: str, windows: int, size: int) -> Tensor:
    if kind == "halfway":  # every value lies between two integers: rounding must go to the even
        return mirrored((torch.randint(-99, 99, (windows, size, size)) + 0.5) / 2**15)
    return mirrored(reference.similarity(tokens_of(kind, windows, size)))


def picks_of(similarities: Tensor, count: int, batch: int, pads: int, pairs: bool) -> Tensor:
    """What the reference picks, `[P, count]`."""
    windows, size = len(similarities) // batch, similarities.shape[-1]
    valid = pad_mask(batch, windows, size, windows * size - pads, similarities.device)
    units = reference.fixed_point(similarities)
    if not pairs:
        return reference.greedy(units, count, valid)
    half = len(units) // 2
    shared = torch.stack((units[:half], units[half:]), 1)
    return reference.greedy(shared, count, None if valid is None else valid[:half]).repeat(2, 1)


def check_picks(
    size: int, count: int, kind: str, pads: int, pairs: bool, streamed: bool, windows: int
) -> None:
    from toma_fx.kernels import greedy

    torch.manual_seed(size + count)
    similarities = similarities_of(kind, 2 * windows, size)
    destinations = torch.full((2, windows, count), POISON)
    phase = torch.tensor(2, dtype=torch.int32)
    largest = 0 if streamed else greedy._LARGEST_TILE
    with mock.patch.object(greedy, "_LARGEST_TILE", largest):
        assert greedy.fits_on_chip(size, 1 + pairs) is not streamed
        greedy.launch_greedy(similarities, phase, destinations, pads, pairs)
    expected = picks_of(similarities, count, 2, pads, pairs)
    assert torch.equal(destinations.view(-1, count), expected), (destinations, expected)


def check_not_due(phase: int, size: int) -> None:
    from toma_fx.kernels.greedy import launch_greedy

    destinations = torch.full((1, 1, 4), POISON)
    similarities = similarities_of("random", 1, size)
    launch_greedy(similarities, torch.tensor(phase, dtype=torch.int32), destinations, 0, False)
    assert (destinations == POISON).all()


def check_not_a_number(streamed: bool) -> None:
    from toma_fx.kernels import greedy

    destinations = torch.full((1, 2, 8), POISON)
    similarities = torch.full((2, 16, 16), torch.nan)
    similarities[1] = torch.inf
    with mock.patch.object(greedy, "_LARGEST_TILE", 0 if streamed else 2**14):
        phase = torch.tensor(2, dtype=torch.int32)
        greedy.launch_greedy(similarities, phase, destinations, 0, False)
    assert (destinations >= 0).all()
    assert (destinations < 16).all()
    assert (destinations.diff() > 0).all(), "sorted, without repetition"


both_kernels = pytest.mark.parametrize("streamed", [False, True], ids=["tile", "streamed"])


@both_kernels
@pytest.mark.parametrize("kind", ["random", "repeated", "equal", "opposite", "halfway"])
@pytest.mark.parametrize(("size", "count"), [(5, 3), (16, 8), (33, 16)])
def test_picks_what_the_reference_picks(
    interpreter: Callable[..., Any], size: int, count: int, kind: str, streamed: bool
) -> None:
    interpreter(check_picks, size, count, kind, 0, False, streamed, 2)


@both_kernels
@pytest.mark.parametrize("kind", ["random", "central"])
@pytest.mark.parametrize("count", [1, 15, 16])
@pytest.mark.parametrize("pairs", [False, True])
def test_pads_come_last(
    interpreter: Callable[..., Any], count: int, kind: str, pairs: bool, streamed: bool
) -> None:
    interpreter(check_picks, 16, count, kind, 2, pairs, streamed, 3)


@both_kernels
@pytest.mark.parametrize("kind", ["random", "repeated"])
def test_pairs_share_one_selection(
    interpreter: Callable[..., Any], kind: str, streamed: bool
) -> None:
    interpreter(check_picks, 20, 10, kind, 0, True, streamed, 2)


@pytest.mark.parametrize("pairs", [False, True])
def test_default_window(interpreter: Callable[..., Any], pairs: bool) -> None:
    interpreter(check_picks, 64, 32, "random", 1, pairs, False, 2)


@pytest.mark.parametrize(("size", "count"), [(130, 129), (256, 128)])
def test_large_windows_are_streamed(interpreter: Callable[..., Any], size: int, count: int) -> None:
    interpreter(check_picks, size, count, "random", 1, True, True, 1)


@pytest.mark.parametrize("phase", [0, 1])
@pytest.mark.parametrize("size", [16, 130])
def test_other_phases_write_nothing(interpreter: Callable[..., Any], phase: int, size: int) -> None:
    interpreter(check_not_due, phase, size)


@both_kernels
def test_no_input_leads_out_of_the_window(interpreter: Callable[..., Any], streamed: bool) -> None:
    interpreter(check_not_a_number, streamed)
