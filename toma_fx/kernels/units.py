"""What the greedy kernels share: integer similarities, the rank of a candidate, the result.

Everything is an integer, so that sums are exact in any order and every device picks alike.
`state` tells candidates apart: 0 free, 1 a free pad, 2 taken, 3 beyond the window's end.
"""

from __future__ import annotations

import triton
import triton.language as tl

ONE = tl.constexpr(2**16)
"""A similarity of one. Also above every coverage that counts: it marks what does not count."""

_HALF = tl.constexpr(2.0**15)
_ROUNDER = tl.constexpr(1.5 * 2.0**23)


@triton.jit
def load_units(address: tl.tensor, diagonal: tl.tensor, mask: tl.tensor) -> tl.tensor:
    """Similarities as integers in units of 2⁻¹⁶, as `reference.fixed_point` of a symmetric matrix.

    Adding and subtracting 1.5·2²³ rounds half to even in every compiler and in the interpreter.
    The clamp makes a NaN a number, so that no input can lead a pick out of its window.
    """
    similarities = tl.load(address, mask=mask, other=0.0)
    bounded = tl.minimum(tl.maximum(similarities, -1.0), 1.0)
    half = ((bounded * _HALF + _ROUNDER) - _ROUNDER).to(tl.int32)
    return tl.where(diagonal, ONE, 2 * half)


@triton.jit
def first_state(candidates: tl.tensor, size: tl.constexpr, padded: tl.tensor) -> tl.tensor:
    """The state of each candidate before the first pick."""
    state = tl.where((candidates == size - 1) & padded, 1, 0)
    return tl.where(candidates < size, state, 3)


@triton.jit
def first_coverage(slots: tl.tensor, size: tl.constexpr, padded: tl.tensor) -> tl.tensor:
    """How well each slot is represented before the first pick: below every similarity.

    The first gains are then the row sums plus a constant, so the first pick needs no case of its
    own. Pads, and lanes beyond the window, start fully covered: nobody gains from them.
    """
    return tl.where(slots < size - padded.to(tl.int32), -ONE, ONE)


@triton.jit
def first_pick(
    padded: tl.tensor, size: tl.constexpr, lanes: tl.constexpr, items: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Candidates, rows of all items, the slot of each row; states and coverage to begin with."""
    candidates = tl.arange(0, lanes)
    rows = tl.arange(0, items * lanes)
    slots = rows % lanes
    state = first_state(candidates, size, padded)
    return candidates, rows, slots, state, first_coverage(slots, size, padded)


@triton.jit
def best(gains: tl.tensor, state: tl.tensor) -> tl.tensor:
    """The free candidate of the largest gain, the lowest index among equals.

    Gains are never negative; pads rank below every valid token, taken tokens below pads.
    """
    return tl.argmax(tl.where(state == 0, gains, -state), 0, tie_break_left=True)


@triton.jit
def store_picks(
    destinations: tl.tensor,
    candidates: tl.tensor,
    state: tl.tensor,
    group: tl.tensor,
    groups: tl.int32,
    count: tl.constexpr,
    items: tl.constexpr,
) -> None:
    """Write the taken candidates in ascending order, once for each item of a selection."""
    taken = state == 2
    places = tl.cumsum(taken.to(tl.int32), 0) - 1
    for item in tl.static_range(items):
        window = destinations + (group + item * groups) * count
        tl.store(window + places, candidates.to(tl.int64), mask=taken)
