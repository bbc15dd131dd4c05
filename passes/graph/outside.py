"""What is known of the whole model where a part of it is compiled: a block shows neither the step
nor the sides of the picture."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


def _nothing(tokens: int) -> None:
    return None


@dataclass(frozen=True)
class Outside:
    """What a graph is told from outside.

    Attributes:
        followed: it is part of a model whose steps are followed: the moment is told at each call.
        grid: sides of the picture of so many tokens; None where it is not known.
        positions: `[N, k]` coordinates of its tokens, where the model knows the picture by them.
    """

    followed: bool = False
    grid: Callable[[int], tuple[int, ...] | None] = _nothing
    positions: Callable[[int], Tensor | None] = _nothing

    def knows(self, tokens: int) -> bool:
        """Whether the picture has so many tokens."""
        return self.positions(tokens) is not None or self.grid(tokens) is not None


def grid_of_positions(positions: Tensor) -> tuple[int, ...] | None:
    """Sides of a picture whose tokens stand row by row, by their coordinates; None of another."""
    moved = (positions - positions.amin(0, keepdim=True)).round().long()
    if moved.shape[1] > 3:
        return None
    sides = tuple(int(side) + 1 for side in moved.amax(0))
    if math.prod(sides) != len(moved):
        return None
    place = moved.new_zeros(len(moved))
    for column, side in enumerate(sides):
        place = place * side + moved[:, column]
    if not bool((place == place.new_tensor(range(len(place)))).all()):
        return None
    return sides[1:] if len(sides) == 3 and sides[0] == 1 else sides
