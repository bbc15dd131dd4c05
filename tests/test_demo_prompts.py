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
    assert 0 < half.change(plain) < 0.5
    assert plain.change(plain) == 0
    assert half.left < plain.left == 1
    assert [plain.title, half.title] == ["plain", "50% merged"]
    again = generators.generate(random("emoji-flux"), TEXTS, [3, 4, 5], 2)
    torch.testing.assert_close(plain.pictures, again)


def test_the_sheet_has_a_column_a_prompt_and_a_row_a_ratio(tmp_path: Path) -> None:
    drawn = [prompts.Drawn(ratio, torch.rand(3, 3, 64, 64), 0.5) for ratio in (0.0, 0.5)]
    drawn[1].pictures[2, 0] = 1.0  # the last prompt of the lower row is red
    drawn[1].pictures[2, 1:] = 0.0
    file = prompts.write_sheet(TEXTS, drawn, tmp_path / "new" / "sheet.png")
    sheet = Image.open(file)
    assert 3 * 128 < sheet.width < 3 * 128 + 110
    assert 2 * 128 < sheet.height < 2 * 128 + 60
    assert sheet.getpixel((sheet.width - 20, sheet.height - 20)) == (255, 0, 0)
    assert sheet.getpixel((sheet.width - 20, 40)) != (255, 0, 0)


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
    assert Path(printed.splitlines()[-1]) == tmp_path / "index.html"


@pytest.mark.parametrize("name", ["emoji-sdxl", "emoji-flux"])
def test_the_weights_are_there_and_small_enough(name: str) -> None:
    file = generators.models.FOLDER / f"{name}-small.safetensors"
    assert file.stat().st_size < 60e6
    generator = generators.load(name)
    assert generator.size != SIZE
    seeds = range(2)
    apple, other = generators.generate(generator, ["red apple", "blueberries"], seeds, 4)
    assert (apple[0] - apple[2]).mean() > (other[0] - other[2]).mean() + 0.05  # redder
