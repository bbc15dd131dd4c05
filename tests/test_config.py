"""Every wrong value is refused at the door, with its name and its range."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from typing import Any

import numpy as np
import pytest

from toma_fx import ConfigError, TomaConfig
from toma_fx.config import KINDS, closest, split_options

COUNTS = ("window", "select_every", "weigh_every", "min_tokens", "span", "slots")
CHOICES = ("order", "unmerge", "share", "scope")


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(TomaConfig)])
def test_every_field_refuses_an_object_and_says_its_name(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        TomaConfig(**{name: object()})


@pytest.mark.parametrize("value", [-0.1, 1, 1.0, 2, float("nan"), float("inf"), "0.5", None, True])
def test_ratio(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"ratio .*\[0, 1\)"):
        TomaConfig(ratio=value)


@pytest.mark.parametrize("value", [0, 0.0, -1, float("nan"), float("inf"), "1", None, False])
def test_temperature(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"temperature .*\(0, ∞\)"):
        TomaConfig(temperature=value)


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [0, -1, 1.5, 2.0, "8", None, True, float("nan")])
def test_counts(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be a whole number of at least 1"):
        TomaConfig(**{name: value})


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("value", ["", "til", "TILE", None, 3, ["tile"]])
def test_choices_are_listed(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be one of "):
        TomaConfig(**{name: value})


@pytest.mark.parametrize(
    ("scope", "share"), [("block", "region"), ("span", "region"), ("span", "block")]
)
def test_a_scope_needs_one_plan(scope: str, share: str) -> None:
    with pytest.raises(ConfigError, match=f'scope="{scope}" needs share=.*"run".*not "{share}"'):
        TomaConfig(scope=scope, share=share)
    assert TomaConfig(scope="block", share="block").scope == "block"


def test_a_misspelt_choice_gets_the_closest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'hilbert'"):
        TomaConfig(order="hilbrt")


@pytest.mark.parametrize("value", [(), ("attention",), ("self_attention", "mlp"), "some", 3, None])
def test_regions(value: Any) -> None:
    with pytest.raises(ConfigError, match="regions"):
        TomaConfig(regions=value)


@pytest.mark.parametrize("name", ["include", "exclude"])
@pytest.mark.parametrize("value", [3, None, (3,), [None]])
def test_patterns(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be a tuple of patterns"):
        TomaConfig(**{name: value})


@pytest.mark.parametrize(
    "value",
    [(), (8,), (1, 2, 3, 4), (8, 0), (8, -8), (8, 8.0), "circle", 64, (True, 8), ("8", "8")],
)
def test_grid(value: Any) -> None:
    with pytest.raises(ConfigError, match="grid"):
        TomaConfig(grid=value)


@pytest.mark.parametrize("value", ["yes", 2, 0.5, "True"])
def test_cfg_pairs(value: Any) -> None:
    with pytest.raises(ConfigError, match="cfg_pairs must be True, False or None"):
        TomaConfig(cfg_pairs=value)


def test_config_errors_are_value_errors() -> None:
    with pytest.raises(ValueError, match="ratio"):
        TomaConfig(ratio=2)


def test_a_config_can_be_a_key_whatever_sequences_it_was_given() -> None:
    one = TomaConfig(grid=[8, 8], include=["a.*"], exclude="b", regions=["feed_forward"])
    two = TomaConfig(grid=(8, 8), include=("a.*",), exclude=("b",), regions=("feed_forward",))
    assert one == two
    assert {one: 1}[two] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.ratio = 0.1  # type: ignore[misc]


def test_the_limits_themselves_are_allowed() -> None:
    TomaConfig(ratio=0, window=1, select_every=1, weigh_every=1, min_tokens=1, temperature=1)
    TomaConfig(grid=(1, 1), regions=KINDS, cfg_pairs=True)
    TomaConfig(grid=(2, 3, 4), cfg_pairs=False)
    assert TomaConfig(grid="square").grid == "square"


def test_a_single_kind_may_be_a_string() -> None:
    assert TomaConfig(regions="feed_forward").regions == ("feed_forward",)


def test_options_are_split_by_name() -> None:
    config, others = split_options(
        {"ratio": 0.25, "min-tokens": 9, "max_autotune": True}, ("max_autotune", "freezing")
    )
    assert config == TomaConfig(ratio=0.25, min_tokens=9)
    assert others == {"max_autotune": True}


def test_no_options_are_the_defaults() -> None:
    assert split_options(None, ()) == (TomaConfig(), {})
    assert split_options({}, ("anything",)) == (TomaConfig(), {})


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("ration", "ratio"),
        ("windows", "window"),
        ("autotunes", "autotune"),
        ("min-token", "min_tokens"),
    ],
)
def test_an_unknown_option_names_the_closest(given: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown option '{given}'; did you mean '{meant}'"):
        split_options({given: 1}, ("max_autotune",))


def test_an_option_like_no_other_gets_no_advice() -> None:
    with pytest.raises(ConfigError, match=r"unknown option 'xyzzy'$"):
        split_options({"xyzzy": 1}, ("max_autotune",))
    assert closest("xyzzy", ["ratio"]) == ""


def test_a_wrong_value_among_the_options_is_refused_too() -> None:
    with pytest.raises(ConfigError, match="ratio"):
        split_options({"ratio": "half"}, ())


@pytest.mark.parametrize("value", [-1, 1.0, True, None, "5"])
def test_skip_blocks_is_a_count(value: Any) -> None:
    assert TomaConfig(skip_blocks=0).skip_blocks == 0
    with pytest.raises(ConfigError, match="skip_blocks must be a whole number of at least 0"):
        TomaConfig(skip_blocks=value)


def test_fields_that_do_not_exist_name_the_closest() -> None:
    with pytest.raises(ConfigError, match="TomaConfig has no field 'ratios'; did you mean 'ratio'"):
        TomaConfig(ratios=0.5)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="'windw'; did you mean 'window'"):
        dataclasses.replace(TomaConfig(), windw=4)
    with pytest.raises(ConfigError, match=r"no field 'zzz'$"):
        TomaConfig(zzz=1)  # type: ignore[call-arg]


def test_scalars_of_numpy_are_numbers() -> None:
    given = TomaConfig(
        ratio=np.float32(0.25),
        window=np.int64(4),
        select_every=np.int32(2),
        grid=(np.int64(8), np.int16(4)),
    )
    expected = TomaConfig(ratio=0.25, window=4, select_every=2, grid=(8, 4))
    assert given == expected
    assert hash(given) == hash(expected)
    assert json.dumps(dataclasses.asdict(given)) == json.dumps(dataclasses.asdict(expected))
    for wrong in ({"ratio": np.float64(1.5)}, {"window": np.float32(4)}, {"ratio": np.bool_(True)}):
        with pytest.raises(ConfigError):
            TomaConfig(**wrong)


def test_configurations_are_copied_and_pickled() -> None:
    config = TomaConfig(ratio=0.25, exclude="*.attn2")
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config
    assert dataclasses.replace(config, ratio=0.75).exclude == ("*.attn2",)
