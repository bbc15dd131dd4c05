"""Profiles by name and by device, and measurements that are kept."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from toma_fx import ConfigError
from toma_fx.devices import PROFILES, DeviceProfile, find_profile, measure_device

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", list(PROFILES))
def test_every_profile_is_usable_and_says_where_it_is_from(name: str) -> None:
    profile = find_profile(name, CPU)
    numbers = (*dataclasses.astuple(profile.half), *dataclasses.astuple(profile.single))
    assert all(1e9 < number < 1e16 for number in numbers)
    assert 1e9 < profile.bandwidth < 1e13
    assert 0 < profile.launch < 1e-3
    assert profile.source


@pytest.mark.parametrize("name", ["H200", "RTX 4090", "rtx-6000-ada"])
def test_names_are_forgiving(name: str) -> None:
    assert find_profile(name, CPU).name == name.lower().replace(" ", "").replace("-", "")


def test_an_unknown_name_lists_those_that_are_known() -> None:
    with pytest.raises(ConfigError, match=r"'h20'; did you mean 'h200'\? \(known: v100, "):
        find_profile("h20", CPU)


def test_without_a_measurement_the_cpu_has_a_general_profile() -> None:
    assert find_profile(None, CPU) is PROFILES["cpu"]
    assert find_profile(None, torch.device("meta")) is not None


def test_a_measurement_is_kept_and_used(empty_cache: Path) -> None:
    measured = measure_device(CPU)
    assert "measured" in measured.source
    assert find_profile(None, CPU) == measured
    assert measure_device(CPU) == measured  # read, not measured again: rates never agree exactly
    assert find_profile("measure", CPU) == measured
    assert measure_device(CPU, again=True) != measured
    assert len(list((empty_cache / "toma_fx").iterdir())) == 1


def test_a_broken_cache_counts_as_none(empty_cache: Path) -> None:
    measured = measure_device(CPU)
    (file,) = (empty_cache / "toma_fx").iterdir()
    for content in ("", "{", "[]", '{"format": 0}', '{"format": 2}', "null"):
        file.write_text(content)
        assert find_profile(None, CPU) is PROFILES["cpu"]
    assert isinstance(measure_device(CPU), DeviceProfile)
    assert json.loads(file.read_text())["name"] == measured.name


def test_half_precision_has_rates_of_its_own() -> None:
    profile = PROFILES["h200"]
    assert profile.rates(torch.bfloat16) is profile.half
    assert profile.rates(torch.float16) is profile.half
    assert profile.rates(torch.float32) is profile.single
