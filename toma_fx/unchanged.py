"""What was read of tensors, kept for each as long as it stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

T = TypeVar("T")


def version_of(tensor: Tensor) -> int | None:
    """Another one after each change; None for tensors of inference mode, which count none."""
    return None if tensor.is_inference() else tensor._version


class Unchanged(Generic[T]):
    """Reads a tensor anew only where it is another object, or was written to; holds it weakly.

    Args:
        read: what is worth keeping, because it reads all of the tensor or waits for the device.
    """

    def __init__(self, read: Callable[[Tensor], T]) -> None:
        self._read = read
        self._kept = WeakIdKeyDictionary()

    def __call__(self, tensor: Tensor) -> T:
        mark: Any = version_of(tensor), tensor.data_ptr()
        kept = self._kept.get(tensor)
        if kept is None or mark[0] is None or kept[0] != mark:
            kept = self._kept[tensor] = mark, self._read(tensor)
        found: T = kept[1]
        return found
