"""Videos that move as they say, and the change that windows of equal tokens make to them."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import video_windows
from benchmarks.video_windows import (
    PATCH,
    WINDOWS,
    Setting,
    inputs,
    markdown,
    measure,
    model,
    video,
)
from toma_fx.order import divides, tile_order

TOY = Setting(grid=(2, 4, 8), windows=(4, (2, 2, 4)), ratios=(0.5,), noise=(0.0,), seeds=1)


def test_windows_hold_as_many_tokens_and_divide_the_grid() -> None:
    grid = Setting.grid
    assert {w**2 if isinstance(w, int) else math.prod(w) for w in WINDOWS} == {64}
    assert all(divides(grid, window) for window in WINDOWS)
    assert torch.equal(tile_order(grid, 8), tile_order(grid, (1, 8, 8)))


def test_a_video_moves_by_its_speed() -> None:
    still, moving = (video((3, 8, 8), speed, seed=1) for speed in (0.0, 0.5))
    assert torch.allclose(still[:, 0], still[:, 2], atol=1e-5)
    torch.testing.assert_close(still.std((1, 2, 3)), torch.ones(len(still)))
    spectra = [torch.fft.fft2(moving[:, frame]) for frame in (0, 2)]
    correlation = torch.fft.ifft2(spectra[0].conj() * spectra[1]).real.sum(0)
    rows, columns = divmod(int(correlation.argmax()), correlation.shape[1])
    signed = [at - size if at > size / 2 else at for at, size in ((rows, 16), (columns, 16))]
    assert math.hypot(*signed) == pytest.approx(2 * 0.5 * PATCH, abs=0.8)


@torch.no_grad()
def test_attention_matters_to_the_output_of_untrained_weights() -> None:
    network, given = model(0, layers=2), inputs(TOY, seed=0)
    found = network(**given, return_dict=False)[0]
    for block in network.blocks:
        block.attn1.to_out[0].weight.zero_()
    without = network(**given, return_dict=False)[0]
    assert (without - found).norm() > 0.1 * found.norm()


def test_frames_that_repeat_are_merged_for_less() -> None:
    """Half of a still video's tokens are there twice: a window of both frames loses next to none.

    Only next to none, since a block changes tokens by where they stand.
    """
    found = {(r["window"], r["speed"]): r["change"] for r in measure(TOY)}
    assert len(found) == len(TOY.windows) * len(TOY.speeds)
    assert 0 < 3 * found[(2, 2, 4), "still"] < found[4, "still"]


def test_a_run_writes_its_records_and_their_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {4: 0.25, (2, 2, 4): 0.125}
    records = [
        {"seed": seed, "ratio": 0.5, "window": w, "speed": "still", "noise": 0.0, "change": change}
        for seed in range(2)
        for w, change in changes.items()
    ]
    monkeypatch.setattr(video_windows, "measure", lambda setting: records)
    monkeypatch.setattr(sys, "argv", ["video_windows", "--out", str(tmp_path / "found")])
    video_windows.main()
    written = json.loads((tmp_path / "found.json").read_text())
    assert written["versions"]["torch"]
    assert written["seeds"] == Setting.seeds
    page = (tmp_path / "found.md").read_text()
    assert page == markdown(written)
    assert "| `(2, 2, 4)` | 0.500 ± 0.000 | 0.500 ± 0.000 | 2 of 2 |" in page
    assert "| `4` | 0.250 ± 0.000 | 0.250 ± 0.000 | 0 of 2 |" in page
    assert "| `(2, 2, 4)` | 0.125 ± 0.000 | 0.125 ± 0.000 | 2 of 2 |" in page
