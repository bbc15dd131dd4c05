"""What the tests of exchanges share: a group of ranks that are not there, heads for tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
import torch.nn.functional as F
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

RANKS, HEADS = 2, 4


@pytest.fixture(autouse=True, scope="module")
def group() -> Iterator[None]:
    """One of two ranks, whose exchanges take and give nothing: shapes are what they would be."""
    dist.init_process_group("fake", rank=0, world_size=RANKS, store=FakeStore())
    yield
    dist.destroy_process_group()


def exchange(x: Tensor, shares: list[int] | None = None) -> Tensor:
    flat = funcol.all_to_all_single(x.flatten(), shares, shares, dist.group.WORLD)
    return funcol.wait_tensor(flat.reshape(x.shape))


def to_all_tokens(x: Tensor) -> Tensor:
    """`[B, N, C]` to `[B, ranks · N, H / ranks, D]`: some heads of the tokens of all ranks."""
    parts = x.unflatten(-1, (RANKS, HEADS // RANKS, -1)).permute(2, 1, 0, 3, 4)
    return exchange(parts.contiguous()).flatten(0, 1).permute(1, 0, 2, 3).contiguous()


def to_all_heads(x: Tensor) -> Tensor:
    """Back to `[B, N, C]`."""
    batch, tokens, heads, width = x.shape
    parts = x.reshape(batch, RANKS, tokens // RANKS, heads, width).permute(1, 3, 0, 2, 4)
    return exchange(parts.contiguous()).flatten(0, 1).permute(1, 2, 0, 3).flatten(2)


def attend(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    parts = (part.transpose(1, 2) for part in (query, key, value))
    return F.scaled_dot_product_attention(*parts, **options).transpose(1, 2)
