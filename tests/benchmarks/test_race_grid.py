"""Which cases a race has, and how they are cut into heats."""

from __future__ import annotations

import pytest

from benchmarks.race.contestants import CHAMPION, REFERENCE
from benchmarks.race.grid import GRIDS, Case, cases_of, heats
from benchmarks.race.models import TITLES, preset_of


@pytest.mark.parametrize(("device", "level"), [*GRIDS, ("cpu", "all"), ("cuda", "all")])
def test_every_case_once_and_the_plain_model_in_every_group(device: str, level: str) -> None:
    cases = cases_of(device, level)
    keys = [case.key for case in cases]
    assert len(set(keys)) == len(keys)
    plain = {case.group for case in cases if case.contestant.name == REFERENCE}
    assert plain == {case.group for case in cases}
    assert {case.model for case in cases} <= set(TITLES)
    assert all(preset_of(case.model) for case in cases)


def test_the_default_grid_has_what_a_race_needs() -> None:
    for device in ("cpu", "cuda"):
        cases = [case for case in cases_of(device, "default") if case.contestant.name == CHAMPION]
        sizes = {(case.height, case.width) for case in cases}
        assert len(sizes) >= 3
        assert any(height != width for height, width in sizes)
        assert {case.ratio for case in cases} == {0.25, 0.5, 0.75}
    tokens = {case.labels["tokens"] for case in cases_of("cpu", "default")}
    assert {1024, 4096, 16384} <= tokens


def test_filters_keep_the_plain_model() -> None:
    cases = cases_of(
        "cuda", "all", models=["sdxl"], sizes=[(1216, 832)], ratios=[0.5], contestants=["tofu"]
    )
    assert [case.key for case in cases] == [
        f"sdxl/1216x832/{REFERENCE}",
        "sdxl/1216x832/tofu/0.5",
    ]


def test_heats_have_one_ratio_and_at_most_their_size() -> None:
    cases = [case for case in cases_of("cpu", "default") if case.group == "sdxl-stage/512x512"]
    cut = list(heats(cases, 4))
    assert [case for heat in cut for case in heat] == cases
    assert max(map(len, cut)) <= 4
    assert all(len(_ratios(heat)) <= 1 for heat in cut)


def _ratios(heat: list[Case]) -> set[float]:
    return {case.ratio for case in heat if case.ratio is not None}
