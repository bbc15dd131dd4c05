"""Under which conditionings a model was called, told on the host without a wait."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from toma_fx.unchanged import version_of


class Seen:
    """What the slots of a guard were used for, the latest last.

    Tensors of a picture are the same ones at every step, so that looking at where they lie is
    enough. One that was made anew is compared, which waits for the device.
    """

    def __init__(self) -> None:
        self._calls: list[tuple[list[Any], list[Any]]] = []

    def add(self, given: Sequence[Any], slots: int) -> None:
        """A call computed under this conditioning; as many are kept as there are slots.

        Holds the tensors, so that no other one takes their place in memory.
        """
        marks = [_mark(value) for value in given]
        kept = [call for call in self._calls if call[0] != marks]
        self._calls = [*kept, (marks, list(given))][-slots:]

    def knows(self, given: Sequence[Any]) -> bool:
        """Whether a call computed under this conditioning, and its slot was not given up."""
        marks = [_mark(value) for value in given]
        return any(all(map(_same, given, values, marks, theirs)) for theirs, values in self._calls)


def _mark(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    # Whoever writes into a tensor of inference mode is not found out here.
    where = value.data_ptr(), value.shape, value.stride(), value.dtype, value.device
    return *where, version_of(value)


def _same(value: Any, before: Any, mark: Any, theirs: Any) -> bool:
    if mark == theirs:
        return True
    alike = isinstance(value, Tensor) and isinstance(before, Tensor)
    # One that was written to since has nothing to be compared with.
    unchanged = alike and _mark(before) == theirs
    return unchanged and value.device == before.device and torch.equal(value, before)
