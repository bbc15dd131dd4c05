"""Prompts on the command line, drawn plain and merged, side by side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
Image = pytest.importorskip("PIL.Image")

from tests.benchmarks.generators import SIZE, install, random  # noqa: E402
from toma_fx.demo import __main__ as command  # noqa: E402
from toma_fx.demo import generators, prompts  # noqa: E402

TEXTS = ["red apple", "smiling cat", "a caption too long for the column it stands in"]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    install(monkeypatch)
    monkeypatch.setitem(prompts._OPTIONS, "min_tokens", 16)
    monkeypatch.setitem(prompts._OPTIONS, "window", 4)
    yield
    torch._dynamo.reset()


def test_each_ratio_draws_the_same_prompts() -> None:
    plain, half = prompts.draw(random("emoji-flux"), TEXTS, 2, seed=3, ratios=(0.0, 0.5))
    assert plain.pictures.shape == half.pictures.shape == (3, 3, 16, 16)
    assert 0 < prompts.change(plain, half) < 0.5
    assert prompts.change(plain, plain) == 0
    assert half.seconds > 0
    again = generators.generate(random("emoji-flux"), TEXTS, [3, 4, 5], 2)
    torch.testing.assert_close(plain.pictures, again)


def test_the_sheet_has_a_row_a_prompt_and_a_column_a_ratio(tmp_path: Path) -> None:
    drawn = [prompts.Drawn(ratio, torch.rand(3, 3, 64, 64), 0.1) for ratio in (0.0, 0.25, 0.5)]
    file = prompts.write_sheet(TEXTS, drawn, tmp_path / "new" / "sheet.png")
    width, height = Image.open(file).size
    assert 3 * 128 < width < 3 * 128 + 50
    assert 3 * 128 < height < 3 * 128 + 150


def test_the_command_takes_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generators, "load", random)
    monkeypatch.setattr(generators, "NAMES", ("emoji-flux",))
    given = ["--only", "prompts", "--picture-steps", "1", "--out", str(tmp_path)]
    assert command.main([*given, "--prompts", "red apple"]) == 0
    assert [file.name for file in tmp_path.glob("*.png")] == ["emoji-flux.png"]
    printed = capsys.readouterr().out
    assert "75%" in printed
    assert "emoji-flux.png" in printed


@pytest.mark.parametrize("name", ["emoji-sdxl", "emoji-flux"])
def test_the_weights_are_there_and_small_enough(name: str) -> None:
    file = generators.models.FOLDER / f"{name}-small.safetensors"
    assert file.stat().st_size < 60e6
    generator = generators.load(name)
    assert generator.size != SIZE
    seeds = range(2)
    apple, other = generators.generate(generator, ["red apple", "blueberries"], seeds, 4)
    assert (apple[0] - apple[2]).mean() > (other[0] - other[2]).mean() + 0.05  # redder
