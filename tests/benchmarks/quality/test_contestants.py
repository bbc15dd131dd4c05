"""Contestants are data, and one that cannot run is skipped with a reason."""

from __future__ import annotations

import pytest

from benchmarks.quality import contestants
from benchmarks.quality.contestants import (
    REFERENCE,
    SELECTIONS,
    Contestant,
    Field,
    distinct,
    everyone,
    selected,
)
from benchmarks.quality.forms import config_of
from benchmarks.quality.painters import EmojiPainter


def test_names_are_different_and_the_reference_comes_first() -> None:
    names = [one.name for one in everyone({}).runs]
    assert names[0] == REFERENCE
    assert len(set(names)) == len(names)


def test_every_option_is_one_of_this_version() -> None:
    for one in everyone({"regions": "all"}).runs:
        if one.options is not None:
            assert one.options["regions"] == "all"
            config_of(one.options)


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


def test_equally_many_steps_are_one_contestant() -> None:
    everybody = everyone({})
    kept = {steps: distinct(everybody, steps) for steps in (4, 12, 28)}
    counts = {
        steps: [one.count(steps) for one in field.runs if one.steps != 1.0]
        for steps, field in kept.items()
    }
    assert counts[4] == [3, 2, 1]
    assert counts[12] == [9, 6, 3, 10, 8, 7, 5, 4, 11]
    assert all(len(set(found)) == len(found) and 28 not in found for found in counts.values())
    assert kept[4].skipped["one step fewer"] == "3 of 4 steps, as 75% of the steps"
    assert "50% of the steps" in [one.name for one in kept[28].runs]
    alone = Field([one for one in everybody.runs if one.name == "one step fewer"])
    assert distinct(alone, 4).runs == alone.runs


def test_caches_are_skipped_where_diffusers_has_none(
    painter: EmojiPainter, unet: EmojiPainter, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_flux, of_unet = (everyone({}, model=one.denoiser) for one in (painter, unet))
    assert of_flux.skipped["deepcache, every 2nd step"] == "deepcache is for a UNet"
    reason = "diffusers gives UNet2DConditionModel no enable_cache"
    assert of_unet.skipped["first block cache, half"] == reason
    for found in (of_flux, of_unet):
        assert "taylorseer, every 2nd step" in [one.name for one in found.runs]
    monkeypatch.delattr("diffusers.hooks.MagCacheConfig")
    monkeypatch.setattr("diffusers.__version__", "0.1")
    older = everyone({}, model=painter.denoiser).skipped
    assert older["magcache, half"] == "diffusers 0.1 has no MagCacheConfig"


def test_every_pattern_of_a_selection_fits_somebody(unet: EmojiPainter) -> None:
    field = everyone({})
    names = [one.name for one in field.runs] + list(field.skipped)
    for pattern in SELECTIONS["acceptance"]:
        assert any(selected(Contestant(name, ""), [pattern]) for name in names[1:]), pattern
    assert selected(Contestant(REFERENCE, ""), [])
    assert not selected(Contestant("tomesd 0.5", ""), SELECTIONS["acceptance"])
