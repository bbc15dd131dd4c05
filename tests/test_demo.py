"""The demonstration: what the photograph shows, and that the pipelines say what they did."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

pytest.importorskip("diffusers")
pytest.importorskip("skimage")
Image = pytest.importorskip("PIL.Image")

from toma_fx.demo import __main__ as command  # noqa: E402
from toma_fx.demo import comparison, photograph, pictures, pipelines  # noqa: E402
from toma_fx.demo.errors import DemoError, in_one_line, require  # noqa: E402
from toma_fx.report import ModelForecast, RegionReport, Report  # noqa: E402
from toma_fx.reuse import ReuseStats  # noqa: E402


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command sets this for its process; here it is undone after each test."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def patches() -> photograph.Patches:
    return photograph.cut_patches(photograph.photograph()[64:192, 128:320])


def test_patches_come_back_in_place(patches: photograph.Patches) -> None:
    untouched = photograph.restore(patches, 0.0)
    assert untouched.chosen.all()
    # Temperature lets near-identical patches share: equal within a grey level, not to the bit.
    assert untouched.quality > 40


def test_pixels_are_grouped_by_tile(patches: photograph.Patches) -> None:
    assert patches.grid == (16, 24)
    assert patches.pixels.shape == (6, 64, 192)
    second_tile = patches.picture[:8, 64:72].reshape(-1)  # its first patch
    torch.testing.assert_close(patches.pixels[1, 0], second_tile)


def test_a_picture_is_cropped_to_whole_tiles() -> None:
    cropped = photograph.cut_patches(torch.rand(70, 100, 3), side=4, window=8)
    assert cropped.picture.shape == (64, 96, 3)
    with pytest.raises(ValueError, match="smaller than one tile of 64 x 64 pixels"):
        photograph.cut_patches(torch.rand(63, 100, 3))


def test_quality_falls_with_the_ratio_and_beats_chance(patches: photograph.Patches) -> None:
    restored = [photograph.restore(patches, ratio) for ratio in (0.25, 0.5, 0.75)]
    qualities = [one.quality for one in restored]
    assert qualities == sorted(qualities, reverse=True)
    assert all(one.quality > one.random_quality + 1 for one in restored)


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_every_window_keeps_its_share(patches: photograph.Patches, ratio: float) -> None:
    restored = photograph.restore(patches, ratio)
    windows = restored.chosen.view(2, 8, 3, 8).sum((1, 3))
    assert (windows == 64 * (1 - ratio)).all()
    assert restored.kept == int(restored.chosen.sum())
    assert restored.picture.shape == patches.picture.shape


def test_windows_are_drawn_on_their_borders(patches: photograph.Patches) -> None:
    image = pictures.draw_windows(patches, scale=2)
    assert image.size == (2 * 192, 2 * 128)
    border = image.getpixel((128, 3))
    assert border == image.getpixel((3, 128)) == image.getpixel((256, 70))
    assert border != image.getpixel((123, 3))


def test_only_destinations_keep_their_colour(patches: photograph.Patches) -> None:
    chosen = torch.zeros(patches.grid, dtype=torch.bool)
    chosen[2, 3] = True
    image = pictures.draw_destinations(patches, chosen)
    original = pictures.to_image(patches.picture)
    assert image.getpixel((27, 19)) == original.getpixel((27, 19))
    assert image.getpixel((35, 19)) != original.getpixel((35, 19))


def test_pictures_are_written(patches: photograph.Patches, tmp_path: Path) -> None:
    restored = [photograph.restore(patches, ratio) for ratio in (0.25, 0.5)]
    files = pictures.write_pictures(patches, restored, tmp_path / "new" / "folder")
    assert [file.name for file in files] == [
        "windows.png",
        "destinations_25.png",
        "restored_25.png",
        "destinations_50.png",
        "restored_50.png",
        "contact_sheet.png",
    ]
    sizes = {file.name: Image.open(file).size for file in files}
    assert all(width == 2 * 192 for name, (width, _) in sizes.items() if "sheet" not in name)
    assert sizes["contact_sheet.png"][0] > 3 * 192  # the original and two ratios, side by side
    assert sizes["contact_sheet.png"][1] > 3 * 128


@pytest.mark.parametrize(
    ("build", "merged"),
    # Four attention stages of three regions; one joint block of two and two single ones.
    [(pipelines.stable_diffusion_xl, 12), (pipelines.flux, 4)],
)
def test_pipelines_run_plain_and_merged(
    build: Callable[..., pipelines.Job], merged: int, capsys: pytest.CaptureFixture[str]
) -> None:
    job = build(grid=(16, 24), channels=32)
    eager = job.denoiser
    options = {"ratio": 0.5, "inner_backend": "eager", "regions": "all"}
    result = comparison.compare(job, options, steps=2, rounds=1)

    assert job.denoiser is eager
    assert [region.merged_tokens for region in result.report.merged] == [192] * merged
    assert 0 < result.change < 0.5
    assert result.reuse.steps == 4  # two to warm up, two timed
    comparison.show(result, Console())
    printed = capsys.readouterr().out
    assert f"{merged} of " in printed
    assert f"{result.speedup:.2f}x" in printed
    assert f"{result.change:.1%}" in printed


def region(tokens: int, merged: int) -> RegionReport:
    status = "merged" if merged < tokens else "skipped"
    reason = "" if merged < tokens else "merging gains nothing"
    facts = ("feed_forward", tokens, merged, 32, 0, status, reason, 1000, 500)
    return RegionReport("block", *facts)


def compared(plain: list[float], merged: list[float], regions: int = 1, gain: float = 1.5) -> Any:
    forecast = ModelForecast("cpu", "a test", gain, 1.0, 0.0, 0)
    report = Report([region(256, 128)] * regions or [region(256, 256)], forecast=forecast)
    return comparison.Comparison((1.0, 2.0), plain, merged, 0.1, report, ReuseStats())


def test_a_speedup_is_the_median_of_turns() -> None:
    found = compared([2.0, 9.0, 2.0], [1.0, 4.0, 4.0])  # the machine is busy in the second turn
    assert found.speedups == [2.0, 2.25, 0.5]
    assert found.speedup == 2.0
    assert found.why_slower() == ""


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (compared([1.0], [1.1], regions=0), "nothing was merged.*: merging gains nothing"),
        (compared([1.0, 1.0, 2.0], [1.1, 0.5, 2.2]), "busy: .* took 500 ms, .* plain one 1 s"),
        (compared([1.0], [1.1], gain=1.05), r"256 tokens are too few.*1\.05x predicted"),
        (compared([1.0], [1.1]), "toma-fx doctor --measure"),
    ],
)
def test_a_figure_below_one_says_why(
    found: comparison.Comparison, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert found.speedup < 1
    assert re.search(why, found.why_slower())
    comparison.show(found, Console(width=300))
    assert re.search(f"below 1x: .*{why}", capsys.readouterr().out)


def test_a_run_repeats() -> None:
    job = pipelines.flux(grid=(4, 4), channels=32)
    first, second = (job.run(job.denoiser, 1, "") for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert job.run(job.denoiser, 1, "", "pt").shape == (1, 3, 16, 16)


def test_the_photograph_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--only", "photograph", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "contact_sheet.png" in printed
    assert len(list(tmp_path.glob("*.png"))) == 8
    assert Path(printed.splitlines()[-1]) == tmp_path / "index.html"
    assert (tmp_path / "index.html").stat().st_size > 1e6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ratio", "1.5"], "ratio must lie in [0, 1), not 1.5"),
        (["--only", "photograph", "--out", "/dev/null/out"], "/dev/null/out"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DemoError, match=r"diffusers not installed: run pip install 'toma_fx\[demo"):
        require("diffusers")


def test_a_failed_compilation_is_one_line() -> None:
    @torch.compile(backend="eager", fullgraph=True)
    def broken(x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return x

    with pytest.raises(torch._dynamo.exc.TorchDynamoException) as caught:
        broken(torch.zeros(1))
    assert in_one_line(caught.value).startswith("compilation failed: ")
    assert "\n" not in in_one_line(caught.value)
