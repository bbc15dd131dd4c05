"""Bipartite matching: who is merged, where each token is found, what survives."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from toma_fx import matching

heads = torch.tensor([0, 4, 8])
others = torch.tensor([1, 2, 3, 5, 6, 7, 9, 10, 11])


def tokens(seed: int, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 12, 5, generator=generator)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10**6), sources=st.integers(1, 9))
def test_every_token_has_one_place(seed: int, sources: int) -> None:
    x = tokens(seed)
    merged, cells, single = matching.match(x, heads, others, sources)
    rows = matching.representatives(heads, single)
    where = matching.places(heads, merged, cells, single)
    assert rows.shape == (2, 12 - sources)
    for item in range(2):
        assert sorted([*heads.tolist(), *merged[item].tolist(), *single[item].tolist()]) == list(
            range(12)
        )
        for token in range(12):
            stands = rows[item, where[item, token]].item()
            nearest = torch.cosine_similarity(x[item, token], x[item, heads], dim=-1).argmax()
            assert stands in (token, heads[nearest].item())


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10**6), sources=st.integers(1, 8))
def test_the_nearest_are_merged(seed: int, sources: int) -> None:
    x = tokens(seed)
    merged, _, single = matching.match(x, heads, others, sources)
    near = torch.cosine_similarity(x[:, :, None], x[:, None, heads], dim=-1).amax(-1)
    assert (near.gather(1, merged).amin(1) >= near.gather(1, single).amax(1) - 1e-6).all()


def joined(mean: object) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens 1 and 2 go into the first of two cells, 3 stays single."""
    x = torch.tensor([[[3.0, 0.0], [0.0, 4.0], [3.0, 4.0], [1.0, 0.0], [0.0, 1.0]]])
    rows, merged, cells = torch.tensor([[0, 4, 3]]), torch.tensor([[1, 2]]), torch.tensor([[0, 0]])
    return x, mean(x, rows, merged, cells), rows  # type: ignore[operator]


def test_means_count_what_joins() -> None:
    x, result, _ = joined(matching.average)
    assert torch.allclose(result[0, 0], torch.tensor([2.0, 8 / 3]))
    assert torch.equal(result[0, 1:], x[0, [4, 3]])


def test_norms_are_the_largest_of_those_merged() -> None:
    x, result, _ = joined(matching.norm_preserving)
    assert torch.allclose(result[0, 0], torch.tensor([3.0, 4.0]))  # norm 5, direction of the mean
    assert torch.allclose(result[0, 1:], x[0, [4, 3]])


def test_pruning_leaves_what_stays_as_it_is() -> None:
    x, _, rows = joined(matching.average)
    assert torch.equal(matching.prune(x, rows), x[:, rows[0]])
