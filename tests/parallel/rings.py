"""Ring attention of diffusers where there is no GPU: a kernel of the CPU returns the normaliser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from diffusers.models import attention_dispatch
from torch import Tensor


def _forward_op(
    context: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **more: Any
) -> tuple[Tensor, Tensor]:
    """`[B, N, H, D]` each to the same and `[B, N, H]`, as those of diffusers' kernels do it."""
    parts = (part.transpose(1, 2) for part in (query, key, value))
    out, normaliser = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*parts)
    return out.transpose(1, 2), normaliser.transpose(1, 2)


@contextmanager
def rings_on_a_cpu() -> Iterator[None]:
    """The native attention, which asks for no normaliser otherwise, returns one."""
    with mock.patch.object(attention_dispatch, "_native_attention_forward_op", _forward_op):
        yield
