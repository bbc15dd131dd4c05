"""Packages from the command line: written, run, and refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from toma_fx.cli.main import main

TINY = {
    "_class_name": "FluxTransformer2DModel",
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 16,
    "axes_dims_rope": [4, 6, 6],
}


def test_a_package_is_written_and_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model, file = tmp_path / "config.json", tmp_path / "model.pt2"
    model.write_text(json.dumps(TINY))
    sizes = ["--height", "64", "--width", "64", "--set", "min_tokens=16", "--set", "window=2"]
    fields = ["--set", "regions=all", "--set", "share=run"]
    assert main(["export", str(model), *sizes, *fields, "--out", str(file)]) == 0
    assert "1 entry" in capsys.readouterr().out
    assert main(["run-package", str(file), "--steps", "3"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "FluxTransformer2DModel, ratio 0.5, cpu" in out
    assert "3 steps: 1 selections" in out


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["run-package", "nowhere.pt2"], 1),
        (["run-package", __file__], 1),
        (["export", "flux-small", "--out", "x.pt2", "--also", "512"], 2),
        (["export", "flux-small", "--out", "x.pt2", "--also", "100x100"], 2),
    ],
)
def test_errors_are_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int
) -> None:
    assert main(arguments) == code
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
