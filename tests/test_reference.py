"""The reference mathematics against brute force, plain Python, and its own definitions."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from toma_fx import reference, select_destinations

PROPERTY = settings(deadline=None, max_examples=60, derandomize=True)


def tokens_of(seed: int, *sizes: int) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


def objective(units: list[list[int]], chosen: tuple[int, ...]) -> int:
    """Σ over tokens of the similarity to their nearest destination."""
    return sum(max(units[i][j] for i in chosen) for j in range(len(units)))


def plain_greedy(units: list[list[int]], count: int) -> list[int]:
    chosen: list[int] = []
    for _ in range(count):
        free = [i for i in range(len(units)) if i not in chosen]
        chosen.append(max(free, key=lambda i: (objective(units, (*chosen, i)), -i)))
    return sorted(chosen)


@PROPERTY
@given(st.integers(2, 8), st.integers(1, 6), st.integers(1, 4), st.integers(0, 10_000))
def test_greedy_reaches_its_share_of_the_best_set(
    n: int, count: int, width: int, seed: int
) -> None:
    """Facility location is submodular where similarities are not negative: `1 − 1/e`."""
    count = min(count, n)
    units = reference.fixed_point(reference.similarity(tokens_of(seed, 1, n, width).abs()))
    picks = reference.greedy(units, count)[0].tolist()
    table = units[0].tolist()
    best = max(objective(table, chosen) for chosen in itertools.combinations(range(n), count))
    assert objective(table, tuple(picks)) >= (1 - 1 / math.e) * best


@PROPERTY
@given(st.integers(1, 24), st.integers(1, 24), st.integers(2, 8), st.integers(0, 10_000))
def test_greedy_equals_plain_python(n: int, count: int, width: int, seed: int) -> None:
    count = min(count, n)
    units = reference.fixed_point(reference.similarity(tokens_of(seed, 2, n, width)))
    for window, picks in zip(units.tolist(), reference.greedy(units, count).tolist(), strict=True):
        assert picks == plain_greedy(window, count)


@PROPERTY
@given(
    st.integers(1, 30),
    st.integers(1, 30),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    st.integers(0, 10_000),
)
def test_picks_are_sorted_distinct_and_repeatable(
    n: int, count: int, dtype: torch.dtype, seed: int
) -> None:
    count = min(count, n)
    tokens = tokens_of(seed, 3, n, 8).to(dtype)
    picks = select_destinations(tokens, count)
    assert (picks.dtype, picks.shape) == (torch.int64, (3, count))
    assert bool((picks.diff() > 0).all())
    assert 0 <= int(picks.min()) <= int(picks.max()) < n
    assert torch.equal(picks, select_destinations(tokens.clone(), count))


@PROPERTY
@given(st.integers(2, 20), st.integers(1, 19), st.integers(1, 5), st.integers(0, 10_000))
def test_pads_are_neither_picked_nor_counted(n: int, count: int, pads: int, seed: int) -> None:
    """With a mask the valid tokens' picks are those of a window without the pads."""
    pads = min(pads, n - 1)
    count = min(count, n - pads)
    tokens = tokens_of(seed, 2, n, 6)
    valid = torch.ones(2, n, dtype=torch.bool)
    valid[:, n - pads :] = False
    picks = select_destinations(tokens, count, valid)
    assert int(picks.max()) < n - pads
    assert torch.equal(picks, select_destinations(tokens[:, : n - pads], count))


def test_pads_are_picked_only_once_nothing_else_is_left() -> None:
    valid = torch.tensor([[True, False, True, False]])
    tokens = tokens_of(0, 1, 4, 3)
    assert select_destinations(tokens, 2, valid).tolist() == [[0, 2]]
    assert select_destinations(tokens, 3, valid).tolist() == [[0, 1, 2]]
    assert select_destinations(tokens, 4, valid).tolist() == [[0, 1, 2, 3]]


def test_ties_go_to_the_lowest_index() -> None:
    tokens = torch.eye(4).repeat_interleave(2, 0)[None]  # four pairs of equal tokens
    assert select_destinations(tokens, 4).tolist() == [[0, 2, 4, 6]]
    assert select_destinations(tokens, 5).tolist() == [[0, 1, 2, 4, 6]]
    same = torch.ones(1, 5, 3)
    assert select_destinations(same, 2).tolist() == [[0, 1]]


def test_mutual_nearest_neighbours_tie_in_any_dtype() -> None:
    """Their gains are equal; rounding noise must not choose between them."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        tokens = tokens_of(3, 1, 2, 64).to(dtype)
        assert select_destinations(tokens, 1).tolist() == [[0]]
        assert select_destinations(tokens.flip(1), 1).tolist() == [[0]]


def test_zero_tokens_do_no_harm() -> None:
    tokens = torch.zeros(1, 6, 4)
    tokens[0, 3] = 1
    weights = reference.assignment(tokens, select_destinations(tokens, 3), 1e-3)
    assert bool(weights.isfinite().all())
    assert torch.allclose(weights.sum(1), torch.ones(1, 6))


def test_items_that_share_add_their_gains() -> None:
    tokens = tokens_of(1, 2, 12, 4)
    units = reference.fixed_point(reference.similarity(tokens))
    shared = reference.greedy(units[None], 4)
    assert shared.shape == (1, 4)
    # Wanted: the pick of one window whose coverage counts both items.
    both = units.tolist()
    chosen: list[int] = []
    for _ in range(4):
        free = [i for i in range(12) if i not in chosen]
        chosen.append(max(free, key=lambda i: (sum(objective(u, (*chosen, i)) for u in both), -i)))
    assert shared[0].tolist() == sorted(chosen)
    assert shared[0].tolist() != reference.greedy(units, 4)[0].tolist()


def test_an_item_shared_with_itself_picks_as_alone() -> None:
    units = reference.fixed_point(reference.similarity(tokens_of(2, 3, 10, 4)))
    twice = torch.stack((units, units), 1)
    assert torch.equal(reference.greedy(twice, 4), reference.greedy(units, 4))


@pytest.mark.parametrize("count", [0, -1, 5])
def test_counts_out_of_range_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match="count must lie in 1 … 4"):
        select_destinations(torch.randn(1, 4, 2), count)


@PROPERTY
@given(st.integers(1, 40), st.integers(0, 10_000))
def test_similarities_are_symmetric_integers(n: int, seed: int) -> None:
    similarities = reference.similarity(tokens_of(seed, 2, n, 5))
    units = reference.fixed_point(similarities)
    assert units.dtype == torch.int32
    assert torch.equal(units, units.transpose(1, 2))
    assert bool((units.diagonal(dim1=1, dim2=2) == 2**16).all())
    assert float((units / 2**16 - similarities).abs().max()) < 2**-15


def test_similarity_is_computed_in_float32_whatever_surrounds_it() -> None:
    tokens = tokens_of(0, 2, 8, 16)
    wanted = reference.similarity(tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = reference.similarity(tokens)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, wanted)
    assert reference.similarity(tokens.bfloat16()).dtype == torch.float32


def test_similarity_ignores_lengths() -> None:
    tokens = tokens_of(0, 1, 6, 8)
    scaled = tokens * torch.tensor([1.0, 2, 4, 8, 0.5, 0.25]).view(1, 6, 1)
    assert torch.allclose(reference.similarity(tokens), reference.similarity(scaled), atol=1e-6)


@PROPERTY
@given(
    st.integers(2, 20),
    st.integers(1, 20),
    st.sampled_from([1e-4, 1e-2, 1.0]),
    st.booleans(),
    st.integers(0, 10_000),
)
def test_assignments_spread_a_mass_of_one(
    n: int, count: int, temperature: float, padded: bool, seed: int
) -> None:
    count = min(count, n - 1)
    tokens = tokens_of(seed, 2, n, 6)
    valid = torch.ones(2, n, dtype=torch.bool)
    valid[:, n - padded :] = False
    picks = select_destinations(tokens, count, valid)
    weights = reference.assignment(tokens, picks, temperature, valid)
    assert weights.shape == (2, count, n)
    assert torch.allclose(weights.sum(1), valid.float(), atol=1e-5)
    assert bool((weights >= 0).all())
    assert torch.allclose(reference.merge_matrix(weights).sum(-1), torch.ones(2, count), atol=1e-5)


@PROPERTY
@given(st.integers(2, 16), st.integers(1, 8), st.sampled_from(["transpose", "pinv"]))
def test_equal_tokens_stay_what_they_are(n: int, count: int, method: str) -> None:
    tokens = torch.full((1, n, 3), 0.7)
    picks = select_destinations(tokens, min(count, n))
    weights = reference.assignment(tokens, picks, 1e-3)
    merged = reference.merge(tokens, weights)
    assert torch.allclose(merged, torch.full_like(merged, 0.7), atol=1e-5)
    assert torch.allclose(reference.unmerge(merged, weights, method), tokens, atol=1e-4)


@pytest.mark.parametrize("method", ["transpose", "pinv"])
@pytest.mark.parametrize("n", [1, 2, 7, 16])
def test_nothing_is_lost_where_every_token_stays(n: int, method: str) -> None:
    """Well separated tokens, each its own destination."""
    tokens = torch.eye(n)[None] + 0.05 * tokens_of(0, 1, n, n)
    picks = select_destinations(tokens, n)
    weights = reference.assignment(tokens, picks, 1e-3)
    restored = reference.unmerge(reference.merge(tokens, weights), weights, method)
    assert torch.allclose(restored, tokens, atol=1e-5)


@PROPERTY
@given(st.integers(3, 20), st.integers(1, 8), st.sampled_from([1e-3, 0.1]), st.integers(0, 10_000))
def test_pinv_is_a_right_inverse(n: int, count: int, temperature: float, seed: int) -> None:
    """Merged tokens survive being unmerged and merged again: `M M⁺ = 1`."""
    count = min(count, n - 1)
    tokens = tokens_of(seed, 2, n, 12)
    picks = select_destinations(tokens, count)
    weights = reference.assignment(tokens, picks, temperature).double()
    product = reference.merge_matrix(weights) @ reference.unmerge_matrix(weights, "pinv")
    assert torch.allclose(product, torch.eye(count).double().expand_as(product), atol=1e-4)


def test_pinv_survives_equal_destinations() -> None:
    tokens = torch.ones(1, 4, 3)
    weights = reference.assignment(tokens, torch.tensor([[0, 1]]), 1e-3)
    matrix = reference.unmerge_matrix(weights, "pinv")
    assert bool(matrix.isfinite().all())
    assert torch.allclose(matrix @ reference.merge(tokens, weights), tokens, atol=1e-5)


def test_transpose_is_the_assignment_itself() -> None:
    tokens = tokens_of(0, 2, 6, 4)
    weights = reference.assignment(tokens, select_destinations(tokens, 3), 0.1)
    assert torch.equal(reference.unmerge_matrix(weights), weights.transpose(1, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_merging_keeps_the_dtype(dtype: torch.dtype) -> None:
    tokens = tokens_of(0, 2, 8, 4).to(dtype)
    weights = reference.assignment(tokens, select_destinations(tokens, 4), 1e-3)
    assert weights.dtype == torch.float32
    merged = reference.merge(tokens, weights)
    assert merged.dtype == reference.unmerge(merged, weights).dtype == dtype


def test_a_low_temperature_sends_each_token_to_its_nearest_destination() -> None:
    tokens = tokens_of(4, 1, 10, 8)
    picks = select_destinations(tokens, 4)
    weights = reference.assignment(tokens, picks, 1e-4)
    nearest = reference.similarity(tokens)[0, picks[0]].argmax(0)
    assert torch.equal(weights[0].argmax(0), nearest)
    assert float(weights[0].max(0).values.min()) > 0.999
