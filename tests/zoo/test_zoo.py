"""The table is what is measured: of a handful of models always, of all with `-m zoo`."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.zoo.entries import entries
from tests.zoo.measure import measure
from tests.zoo.table import read

ALWAYS = ("CogVideoXTransformer3DModel/rotary", "HunyuanVideoTransformer3DModel")
"""Rotary embeddings written in place; masks, and streams that are joined late."""
LEAST = 50
"""Classes of which attention is merged."""


def models() -> list[object]:
    return [
        pytest.param(name, marks=() if name in ALWAYS else pytest.mark.zoo)
        for name in sorted(entries())
    ]


@pytest.mark.parametrize("name", models())
def test_a_model_is_what_the_table_says(name: str) -> None:
    """The change is compared to a quarter of itself: processors differ, models do not."""
    row, wanted = measure(entries()[name]), read()[name]
    change, was = row.pop("change"), wanted.pop("change")
    assert row == wanted
    assert change == pytest.approx(was, rel=0.25, abs=1e-4)


def test_the_table_has_every_model() -> None:
    assert set(read()) == set(entries())


def test_no_model_is_wrong() -> None:
    """A rewrite that merges nothing changes nothing, and neither does ratio 0."""
    for name, row in read().items():
        assert row["exact"], name
        assert row["same at ratio 0"], name


def test_most_classes_merge_their_attention() -> None:
    merged = {name.split("/")[0] for name, row in read().items() if row["attention"]}
    assert len(merged) >= LEAST


def test_every_class_that_does_not_says_why() -> None:
    """In regions, or in notes where there is no graph to find any in."""
    attention = Counter[str]()
    for name, row in read().items():
        attention[name.split("/")[0]] += row["attention"]
    for name, row in read().items():
        if not attention[name.split("/")[0]]:
            assert any("(" in region for region in row["regions"]) or row["notes"], name
