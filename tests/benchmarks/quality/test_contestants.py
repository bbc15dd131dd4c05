"""Contestants are data, and one that cannot run is skipped with a reason."""

from __future__ import annotations

import pytest

from benchmarks.quality import contestants
from benchmarks.quality.contestants import REFERENCE, Contestant, everyone
from toma_fx.config import TomaConfig


def test_names_are_different_and_the_reference_comes_first() -> None:
    names = [one.name for one in everyone({}).runs]
    assert names[0] == REFERENCE
    assert len(set(names)) == len(names)


def test_every_option_is_one_of_this_version() -> None:
    for one in everyone({"regions": "all"}).runs:
        if one.options is not None:
            assert one.options["regions"] == "all"
            TomaConfig(**one.options)


def test_an_unknown_option_is_skipped_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    later = [
        Contestant("a later version", "x", {"flux_capacitor": 1, "ratio": 0.5}),
        Contestant("out of range", "x", {"ratio": 1.5}),
    ]
    monkeypatch.setattr(contestants, "_variants", lambda: iter(later))
    skipped = everyone({}).skipped
    assert skipped["a later version"] == "this version has no option flux_capacitor"
    assert "ratio must lie in [0, 1)" in skipped["out of range"]


def test_steps_are_a_share_or_a_difference() -> None:
    assert [Contestant("", "", steps=share).count(20) for share in (1, 0.5, -1)] == [20, 10, 19]
    assert Contestant("", "", steps=0.01).count(20) == 1
