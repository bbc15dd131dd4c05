"""`toma_fx::plan_` on a CPU: what it writes, when, and for whom."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from toma_fx import reference
from toma_fx.operations import REUSE, SELECT, WEIGH, pad_mask, windowed

B, W, N, D, C = 2, 3, 6, 2, 5


def buffers(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.full((B, W, D), 1, dtype=torch.int64),
        torch.full((B * W, D, N), 7.0, dtype=dtype),
        torch.full((B * W, N, D), 7.0, dtype=dtype),
    )


def tokens(count: int = W * N, seed: int = 0) -> Tensor:
    return torch.randn(B, count, C, generator=torch.Generator().manual_seed(seed))


def plan(
    hidden: Tensor,
    phase: int,
    held: tuple[Tensor, Tensor, Tensor],
    order: Tensor | None = None,
    *,
    temperature: float = 0.1,
    unmerge: str = "transpose",
    pairs: bool = False,
) -> None:
    now = torch.tensor(phase, dtype=torch.int32)
    torch.ops.toma_fx.plan_(hidden, order, now, *held, temperature, unmerge, pairs)


def test_reuse_leaves_everything() -> None:
    held = buffers()
    before = [buffer.clone() for buffer in held]
    plan(tokens(), REUSE, held)
    assert all(torch.equal(a, b) for a, b in zip(held, before, strict=True))


@pytest.mark.parametrize("unmerge", ["transpose", "pinv"])
def test_select_writes_what_the_reference_computes(unmerge: str) -> None:
    held = buffers()
    plan(tokens(), SELECT, held, unmerge=unmerge)
    cells = tokens().view(B * W, N, C)
    picks = reference.select_destinations(cells, D)
    weights = reference.assignment(cells, picks, 0.1)
    assert torch.equal(held[0].view(B * W, D), picks)
    assert torch.equal(held[1], reference.merge_matrix(weights))
    assert torch.equal(held[2], reference.unmerge_matrix(weights, unmerge))


def test_weigh_keeps_the_destinations() -> None:
    held = buffers()
    held[0].copy_(torch.tensor([3, 4]))
    plan(tokens(), WEIGH, held)
    assert torch.equal(held[0], torch.tensor([3, 4]).expand(B, W, D))
    cells = tokens().view(B * W, N, C)
    weights = reference.assignment(cells, held[0].view(-1, D), 0.1)
    assert torch.equal(held[1], reference.merge_matrix(weights))


def test_the_order_says_which_token_is_in_which_slot() -> None:
    order = torch.randperm(W * N, generator=torch.Generator().manual_seed(1))
    one, other = buffers(), buffers()
    plan(tokens(), SELECT, one, order)
    plan(tokens()[:, order], SELECT, other)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_pads_carry_no_weight_and_are_not_picked() -> None:
    """Two pads: the last two windows end in one each, which repeats the token before it."""
    real = W * N - 2
    order = torch.tensor([*range(11), 10, *range(11, 16), 15])
    held = buffers()
    plan(tokens(real), SELECT, held, order)
    assert int(held[0][:, 1:].max()) < N - 1
    last = held[2].view(B, W, N, D)[:, :, -1]
    assert torch.equal(last[:, 1:], torch.zeros(B, 2, D))
    assert torch.allclose(last[:, 0].sum(-1), torch.ones(B))
    assert torch.equal(held[1].view(B, W, D, N)[:, 1:, :, -1], torch.zeros(B, 2, D))


def test_pairs_share_destinations_but_not_weights() -> None:
    alone, paired = buffers(), buffers()
    plan(tokens(), SELECT, alone)
    plan(tokens(), SELECT, paired, pairs=True)
    assert not torch.equal(alone[0][0], alone[0][1])
    assert torch.equal(paired[0][0], paired[0][1])
    first, second = paired[1].view(B, W, D, N)
    assert not torch.equal(first, second)


def test_a_pair_of_equal_items_picks_as_one() -> None:
    hidden = tokens()[:1].repeat(2, 1, 1)
    alone, paired = buffers(), buffers()
    plan(hidden, SELECT, alone)
    plan(hidden, SELECT, paired, pairs=True)
    assert all(torch.equal(a, b) for a, b in zip(alone, paired, strict=True))


def test_buffers_keep_their_dtype() -> None:
    held = buffers(torch.bfloat16)
    plan(tokens().bfloat16(), SELECT, held)
    assert held[1].dtype == held[2].dtype == torch.bfloat16
    assert torch.allclose(held[1].float().sum(-1), torch.ones(B * W, D), atol=2e-2)


def test_the_operation_tells_the_compiler_what_it_mutates() -> None:
    schema = torch.ops.toma_fx.plan_.default._schema
    written = [a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write]
    assert written == ["destinations", "merging", "unmerging"]
    assert not schema.returns


def test_windowed_and_pad_mask() -> None:
    hidden = tokens(4)
    order = torch.tensor([2, 3, 0, 1])
    cells = windowed(hidden, order, 2)
    assert torch.equal(
        cells, torch.stack((hidden[0, 2:], hidden[0, :2], hidden[1, 2:], hidden[1, :2]))
    )
    assert pad_mask(B, W, N, W * N, hidden.device) is None
    mask = pad_mask(B, W, N, W * N - 1, hidden.device)
    assert mask is not None
    assert mask.shape == (B * W, N)
    assert (~mask).nonzero().tolist() == [[2, 5], [5, 5]]
