"""Strides that mean nothing are those of a tensor with memory of its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from toma_fx.passes.rewrite.expect import viewed
from toma_fx.strides import settled

TENSORS = {
    "behind text": torch.randn(1, 7, 4)[:, 3:],
    "two items behind text": torch.randn(2, 7, 4)[:, 3:],
    "one token": torch.randn(2, 7, 4)[:, 3:4],
    "one channel": torch.randn(2, 7, 4)[..., :1],
    "one of all": torch.randn(3, 3, 3)[:1, :1, :1],
    "transposed": torch.randn(1, 4, 7).transpose(1, 2),
    "scalar": torch.randn(()),
}


@pytest.mark.parametrize("name", TENSORS)
def test_meaningful_strides_stay(name: str) -> None:
    tensor = TENSORS[name]
    for size, stride, found in zip(tensor.shape, tensor.stride(), settled(tensor), strict=True):
        assert size == 1 or found == stride


@pytest.mark.parametrize("name", ["behind text", "one of all", "scalar"])
def test_of_contiguous_tensors_they_are_those_of_a_full_one(name: str) -> None:
    assert settled(TENSORS[name]) == torch.empty(TENSORS[name].shape).stride()


@pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS)
def test_a_view_has_them(tensor: Tensor) -> None:
    view = viewed(tensor)
    assert view.stride() == settled(tensor)
    assert view.data_ptr() == tensor.data_ptr()
    assert torch.equal(view, tensor)
