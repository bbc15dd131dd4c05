"""Delta debugging against planted culprits, and against tests that no culprit explains."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toma_fx.ddmin import ddmin

Part = tuple[int, ...]


@st.composite
def planted(draw: st.DrawFn) -> tuple[Part, set[int]]:
    """Items, and which of them fail together."""
    items = tuple(range(draw(st.integers(1, 40))))
    return items, draw(st.sets(st.sampled_from(items), min_size=1, max_size=6))


@given(planted())
def test_the_planted_culprits_are_found_and_nothing_else(case: tuple[Part, set[int]]) -> None:
    items, culprits = case
    tried: list[Part] = []

    def fails(part: Part) -> bool:
        tried.append(part)
        return culprits <= set(part)

    assert ddmin(items, fails) == tuple(sorted(culprits))
    assert len(tried) == len(set(tried)), "a part was tried twice"
    assert all(part == tuple(sorted(part)) for part in tried), "the order was lost"


@given(st.integers(1, 300), st.data())
def test_one_culprit_costs_two_trials_a_halving(count: int, data: st.DataObject) -> None:
    culprit = data.draw(st.integers(0, count - 1))
    trials = 0

    def fails(part: Part) -> bool:
        nonlocal trials
        trials += 1
        return culprit in part

    assert ddmin(range(count), fails) == (culprit,)
    assert trials <= 2 * math.ceil(math.log2(count) if count > 1 else 0)


@given(st.integers(1, 9), st.randoms(use_true_random=False))
def test_nothing_can_be_left_out_whatever_the_test_says(count: int, random: object) -> None:
    """No culprit explains these answers, and leaving more out may fail again."""
    answers: dict[Part, bool] = {tuple(range(count)): True, (): False}

    def fails(part: Part) -> bool:
        return answers.setdefault(part, random.random() < 0.5)  # type: ignore[attr-defined]

    found = ddmin(range(count), fails)
    assert fails(found)
    for item in found:
        assert not fails(tuple(other for other in found if other != item))


@given(planted(), planted())
def test_of_two_sets_that_fail_one_is_found(
    one: tuple[Part, set[int]], two: tuple[Part, set[int]]
) -> None:
    items = max(one[0], two[0], key=len)
    sets = (one[1], two[1])
    found = set(ddmin(items, lambda part: any(wanted <= set(part) for wanted in sets)))
    assert found in sets


def test_equal_items_are_told_apart_by_their_place() -> None:
    assert ddmin("abab", lambda part: part.count("b") == 2) == ("b", "b")


@pytest.mark.parametrize("items", [(), ("only",)])
def test_nothing_to_halve(items: tuple[str, ...]) -> None:
    assert ddmin(items, lambda part: pytest.fail("one item needs no trial")) == items
