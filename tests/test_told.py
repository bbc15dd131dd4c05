"""What a denoiser's call tells of its picture."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tests.models import positions
from toma_fx.arguments import Arguments
from toma_fx.shards import WHOLE, Shard, shard_of
from toma_fx.told import Told


class Model(nn.Module):
    def forward(self, hidden_states: Any, timestep: Any, **others: Any) -> None: ...


def told(latents: Any, patch: Any = None, shard: Shard = WHOLE, **others: Any) -> Told:
    config = SimpleNamespace(**({} if patch is None else {"patch_size": patch}))
    return Told(Arguments(Model()), ((latents, 5), others), config, shard)


@pytest.mark.parametrize(
    ("sides", "patch", "tokens", "grid"),
    [
        ((16, 24), 2, 96, (8, 12)),
        ((16, 24), 2, 6, None),  # would be patches of 8
        ((16, 24), None, 6, (2, 3)),  # a level of a UNet
        ((9, 7), None, 20, (5, 4)),  # and one that was rounded up
        ((16, 24), None, 77, None),
        ((5, 16, 24), (1, 2, 2), 480, (5, 8, 12)),
    ],
)
def test_latents_in_patches(
    sides: tuple[int, ...], patch: Any, tokens: int, grid: tuple[int, ...] | None
) -> None:
    found = told(torch.zeros(1, 4, *sides), patch)
    assert found.grid(tokens) == grid
    assert found.positions(tokens) is None


def test_coordinates_of_packed_latents() -> None:
    ids = positions(6, 4)
    found = told(torch.zeros(1, 24, 16), 1, img_ids=ids)
    assert found.grid(24) == (6, 4)
    assert torch.equal(found.positions(24), ids)
    assert found.grid(23) is None
    assert found.positions(23) is None
    both = torch.cat((ids, ids + torch.tensor([1, 0, 0])))
    assert told(torch.zeros(1, 48, 16), img_ids=both).grid(48) == (2, 6, 4)
    other = torch.cat((ids, ids[:8] + torch.tensor([1, 0, 0])))
    found = told(torch.zeros(1, 32, 16), img_ids=other)
    assert found.grid(32) is None
    assert torch.equal(found.positions(32), other)


def test_sides_beside_packed_latents() -> None:
    latents = torch.zeros(1, 24, 16)
    assert told(latents, img_shapes=[[(1, 6, 4)]]).grid(24) == (6, 4)
    assert told(latents, img_shapes=[[(1, 6, 4)]] * 2).grid(24) == (6, 4)
    assert told(latents, img_shapes=[(1, 6, 4)]).grid(24) == (6, 4)
    assert told(latents, img_shapes=[[(1, 6, 4), (1, 2, 2)]]).grid(28) is None
    assert told(latents, img_shapes=[[(1, 6, 4), (1, 6, 4)]]).grid(48) is None
    assert told(latents, num_frames=2, height=3, width=4).grid(24) == (2, 3, 4)
    assert told(latents).grid(24) is None


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_is_told_its_own_rows(rank: int) -> None:
    shard = Shard(rank, 2)
    ids = positions(6, 4)
    found = told(torch.zeros(1, 24, 16), 1, shard, img_ids=ids)
    assert torch.equal(found.positions(12), ids[12 * rank : 12 * (rank + 1)])
    assert found.grid(12) == (3, 4)
    assert found.grid(8) is None
    assert told(torch.zeros(1, 4, 12, 8), 2, shard).grid(12) == (3, 4)
    assert told(torch.zeros(1, 4, 6, 8), 2, shard).grid(6) is None  # within a row
    assert told(torch.zeros(1, 4, 2, 12, 8), (1, 2, 2), shard).grid(24) == (1, 6, 4)
    assert told(torch.zeros(1, 24, 16), None, shard, img_shapes=[[(1, 6, 4)]]).grid(12) == (3, 4)


def test_who_shares_nothing_has_all_tokens() -> None:
    assert shard_of(Model()) is WHOLE
