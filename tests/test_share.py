"""Which shares of the tokens a step may compute."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toma_fx import ConfigError, TomaConfig
from toma_fx.share import CLASSES, Share, share_of


@pytest.mark.parametrize(
    ("ratio", "share"),
    [
        (0.5, Share(1, 2)),
        (0.75, Share(1, 4)),
        (0.25, Share(3, 4)),
        (1 / 3, Share(2, 3)),
        (0.33, Share(2, 3)),
        (0.667, Share(1, 3)),
        (0.4, Share(3, 5)),
        (0.875, Share(1, 8)),
    ],
)
def test_a_ratio_is_the_share_that_is_left_out(ratio: float, share: Share) -> None:
    assert share_of(ratio) == share


@given(st.integers(2, CLASSES).flatmap(lambda q: st.tuples(st.integers(1, q - 1), st.just(q))))
def test_every_fraction_of_few_classes_is_one(parts: tuple[int, int]) -> None:
    fraction = Fraction(*parts)
    share = share_of(1 - float(fraction))
    assert Fraction(share.computed, share.classes) == fraction


@pytest.mark.parametrize(("ratio", "nearest"), [(0.9, "7/8"), (0.45, "3/7"), (0.02, "1/8")])
def test_other_ratios_are_refused_with_the_nearest(ratio: float, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"not {ratio}; the nearest is {nearest}"):
        TomaConfig(method="refresh", ratio=ratio)
    TomaConfig(method="toma", ratio=ratio)


def test_nothing_left_out_is_no_method_at_all() -> None:
    assert TomaConfig(method="refresh", ratio=0).ratio == 0


def test_classes_are_of_equal_size() -> None:
    assert [Share(1, 4).length(n) for n in (256, 225, 5)] == [64, 57, 2]
    assert Share(3, 4).kept(225) == 171
