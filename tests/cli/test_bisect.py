"""`toma-fx bisect` as a user meets it, on a model that takes a second a trial."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from toma_fx.cli.main import main
from toma_fx.cli.presets import PRESETS


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    preset = PRESETS["flux-small"]
    small = {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2}
    config = {"_class_name": preset.class_name, **preset.config, **small}
    (tmp_path / "config.json").write_text(json.dumps(config))
    sizes = ("--height", "128", "--width", "128", "--set", "min_tokens=16", "--set", "window=4")
    return ["bisect", str(tmp_path), *sizes, "--set", "regions=all"]


def test_names_a_region_whose_change_is_too_large(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--tolerance", "1e-6"]) == 0
    out, told = capsys.readouterr()
    assert "1 of 3 merged regions is enough:" in out
    (pattern,) = [line.strip() for line in out.splitlines() if line.startswith("  exclude=")]
    assert "0 regions merged: change 0, right" in told
    path = pattern.removeprefix("exclude=('").removesuffix("',)").partition(":")[2]
    assert path in out.split("exclude=")[0]


def test_says_that_nothing_is_wrong(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    only = ("--set", "include='parallel:*'", "--steps", "2")
    assert main([*command, *only, "--tolerance", "10"]) == 0
    out, told = capsys.readouterr()
    assert out == "nothing is wrong with 1 regions merged\n"
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--tolerance", "-1"), "--tolerance must be at least 0"),
        (("--steps", "0"), "--steps at least 1"),
        (("--ratio", "2"), "ratio must lie in [0, 1)"),
    ],
)
def test_errors_are_one_line(
    command: list[str], capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    assert main([*command, *arguments]) == 2
    err = capsys.readouterr().err.strip()
    assert said in err
    assert len(err.splitlines()) == 1
