"""What a server is told at its start is checked there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from examples.serve.__main__ import parser, settings_of
from examples.serve.settings import Settings, Size
from toma_fx import ConfigError


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lanes": 0}, "lanes must be at least 1"),
        ({"queued": 0}, "queued must be at least 1"),
        ({"sizes": ()}, "at least one size"),
        ({"sizes": (Size(64, 64), Size(64, 64))}, "each once"),
        ({"steps": 60}, "more than most_steps=50"),
        ({"merging": {"ratios": 0.5}}, "ratios"),
        ({"merging": {"ratio": 2}}, "ratio"),
        ({"package": Path("a.pt2"), "merging": {"ratio": 0.5}}, "leave merging out"),
    ],
)
def test_what_is_not_usable_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Settings(**changes)


def test_a_size_is_width_by_height() -> None:
    assert Size.read("64x48") == Size(width=64, height=48)
    assert str(Size(64, 48)) == "64x48"
    for wrong in ("64", "x48", "64x", "64x-1", "64×48", "6.4x4"):
        with pytest.raises(ConfigError, match="WIDTHxHEIGHT"):
            Size.read(wrong)


def test_the_command_line_says_it_all() -> None:
    text = "--model emoji-flux --sizes 64x64 48x64 --lanes 3 --set ratio=0.25 order=stripe"
    found = settings_of(parser().parse_args(text.split()))
    assert found.sizes == (Size(64, 64), Size(48, 64))
    assert (found.model, found.lanes) == ("emoji-flux", 3)
    config = found.config()
    assert (config.ratio, config.order, config.skip_blocks) == (0.25, "stripe", 2)
    with pytest.raises(ConfigError, match="NAME=VALUE"):
        settings_of(parser().parse_args(["--set", "ratio"]))


def test_a_pipeline_merges_as_apply_does_by_default() -> None:
    assert Settings(model="/some/folder").config() == type(Settings().config())()
