"""Delta debugging: the smallest part of a list that still shows a failure."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def ddmin(items: Sequence[T], fails: Callable[[tuple[T, ...]], bool]) -> tuple[T, ...]:
    """A part of some items that fails, while it does not without any single one of them.

    Finds one culprit among `n` in about `2·log₂ n` trials. Several that fail only together cost
    more, at the worst the square of `n`; nothing is assumed of how they act on one another.

    Args:
        items: what fails as a whole, and does not where none of it is left.
        fails: whether a part fails; the items keep their order. Each part is tried once.

    Returns:
        The part, in the order of `items`; all of them where each is needed.

    Source: Zeller and Hildebrandt, Simplifying and Isolating Failure-Inducing Input, IEEE TSE
    28(2), 2002: the algorithm `ddmin`.
    """
    known: dict[tuple[int, ...], bool] = {}

    def shows(part: tuple[int, ...]) -> bool:
        if part not in known:
            known[part] = fails(tuple(items[index] for index in part))
        return known[part]

    left, count = tuple(range(len(items))), 2
    while len(left) > 1:
        parts = _cut(left, count)
        rests = [tuple(index for index in left if index not in part) for part in parts]
        if part := next(filter(shows, parts), None):
            left, count = part, 2
        elif rest := next(filter(shows, rests), None):
            left, count = rest, max(count - 1, 2)
        elif count < len(left):
            count = min(2 * count, len(left))
        else:
            break
    return tuple(items[index] for index in left)


def _cut(indices: tuple[int, ...], count: int) -> list[tuple[int, ...]]:
    """Into some runs of nearly equal length."""
    ends = [len(indices) * number // count for number in range(count + 1)]
    return [indices[start:stop] for start, stop in itertools.pairwise(ends)]
