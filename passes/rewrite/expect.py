"""What the plain graph tells of a result, for the rewritten one to be held against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx

from toma_fx.errors import CannotRewrite
from toma_fx.passes.graph.nodes import shape
from toma_fx.passes.layouts.layout import Segment, TokenLayout


def picture_of(layout: TokenLayout | None) -> tuple[int, int]:
    """Where the merged segment starts, which is the same before and after merging; its length."""
    assert layout is not None
    if layout.pictures > 1:
        raise CannotRewrite("a stream joined with itself has two pictures to put back")
    start = 0
    for segment in layout.segments:
        if segment.merged:
            return start, segment.length
        start += segment.length
    raise AssertionError("a merged layout has a merged segment")


def check_shape(old: fx.Node, new: fx.Node, layout: Any, length: Callable[[Segment], int]) -> None:
    """The replayed shape is the old one with the token axis shortened."""
    if isinstance(layout, tuple) or not isinstance(new.meta["val"], Tensor):
        return
    expected = list(shape(old))
    if layout is not None:
        expected[layout.axis] = sum(length(segment) for segment in layout.segments)
    if tuple(expected) != shape(new):
        raise CannotRewrite(f"merged shape is {shape(new)}, the layout says {tuple(expected)}", old)


def restrided(tensor: Tensor, strides: tuple[int, ...]) -> Tensor:
    return tensor.new_empty_strided(tensor.shape, strides).copy_(tensor)


def viewed(tensor: Tensor) -> Tensor:
    """The same memory with settled strides."""
    for axis in reversed(range(tensor.dim())):
        tensor = tensor.squeeze(axis).unsqueeze(axis) if tensor.shape[axis] == 1 else tensor
    return tensor
