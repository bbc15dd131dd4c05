"""Strides that mean nothing: those of axes of one element, by which Dynamo tells tensors apart."""

from __future__ import annotations

from torch import Tensor


def settled(tensor: Tensor) -> tuple[int, ...]:
    """A tensor's strides, of which those that mean nothing are those of a full tensor.

    A batch of one that was cut out of a longer sequence has the sequence's, which differ from
    those of one with memory of its own.
    """
    found: list[int] = []
    span = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.stride()), strict=True):
        found.append(span if size == 1 else int(stride))
        span = int(size) * found[-1]
    return tuple(reversed(found))
