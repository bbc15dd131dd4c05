"""Windows are sizes alone: slots and ranks, pads spread over windows."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from toma_fx.windows import Windows, cut

PROPERTY = settings(deadline=None, max_examples=200, derandomize=True)
RATIOS = st.floats(0, 0.999)


@PROPERTY
@given(st.integers(1, 400), st.integers(1, 100), RATIOS)
def test_every_token_has_one_slot(tokens: int, size: int, ratio: float) -> None:
    windows = cut(tokens, size, ratio)
    ranks, slots = windows.slot_ranks(), windows.rank_slots()
    assert len(ranks) == windows.count * windows.size
    assert len(slots) == len(set(slots)) == tokens
    assert [ranks[slot] for slot in slots] == list(range(tokens))


@PROPERTY
@given(st.integers(1, 400), st.integers(1, 100), RATIOS)
def test_windows_hold_runs_of_the_sequence_and_one_pad_at_most(
    tokens: int, size: int, ratio: float
) -> None:
    windows = cut(tokens, size, ratio)
    assert windows.size <= size
    assert 0 <= windows.pads < windows.count
    ranks = windows.slot_ranks()
    following = 0
    for window in range(windows.count):
        held = ranks[window * windows.size : (window + 1) * windows.size]
        padded = window >= windows.count - windows.pads
        real = held[: windows.size - padded]
        assert real == list(range(following, following + len(real)))
        assert held[len(real) :] == real[-1:] * padded
        following += len(real)
    assert following == tokens


@PROPERTY
@given(st.integers(1, 400), st.integers(1, 100), RATIOS)
def test_a_window_keeps_what_the_ratio_leaves(tokens: int, size: int, ratio: float) -> None:
    windows = cut(tokens, size, ratio)
    assert windows.destinations == windows.size - math.floor(ratio * windows.size)
    assert 1 <= windows.destinations <= windows.size
    assert windows.merged == windows.count * windows.destinations
    if windows.pads and windows.destinations < windows.size:
        assert windows.destinations <= windows.size - 1  # no window has to keep its pad


def test_windows_that_divide_have_no_pads() -> None:
    assert cut(4096, 64, 0.5) == Windows(tokens=4096, count=64, size=64, destinations=32)


def test_a_window_larger_than_the_stream_is_the_stream() -> None:
    assert cut(10, 64, 0.5) == Windows(tokens=10, count=1, size=10, destinations=5)


def test_a_prime_number_of_tokens_is_cut_evenly() -> None:
    windows = cut(101, 10, 0.25)
    assert (windows.count, windows.size, windows.pads) == (11, 10, 9)
    assert windows.destinations == 8
