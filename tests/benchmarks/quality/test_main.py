"""The whole benchmark on a tiny generator: pictures, scores, tables and plots, and going on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.quality import __main__ as command
from benchmarks.quality import networks, notes, settings
from benchmarks.quality.measures import Estimate
from benchmarks.quality.produce import noted
from benchmarks.quality.report import Row
from tests.benchmarks.generators import CAPTIONS, SIZE
from tests.benchmarks.quality.test_networks import Inception, Lite, clip

CONTESTANTS = (
    *("another *", "toma 0.5", "50% of the steps", "toma 0.5, guard off"),
    "first block cache, half",
)


@pytest.fixture
def asked(tmp_path: Path, flux: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of a run with small networks of the same interface as the real ones."""
    prompts, real = tmp_path / "prompts.txt", tmp_path / "real"
    prompts.write_text("\n".join(CAPTIONS))
    real.mkdir()
    for name in ("one", "two", "three"):
        Image.new("RGB", (16, 16), (200, len(name) * 20, 0)).save(real / f"{name}.png")
    torch.jit.script(Inception()).save(str(tmp_path / "inception.pt"))
    clip(tmp_path / "clip")
    monkeypatch.setattr(networks, "_efficientnet", Lite)
    given = f"--model emoji-flux --size {SIZE} --weights {flux} --prompts {prompts} --real {real}"
    given += f" --inception {tmp_path / 'inception.pt'} --clip {tmp_path / 'clip'} --device cpu"
    given += " --pairs 4 --ablation-pairs 2 --steps 3 4 --batch 2 --rounds 1"
    given += " --dtype float32 --backend eager"
    given += f" --min-tokens 16 --work {tmp_path / 'work'} --out {tmp_path / 'out'} --only"
    return [*given.split(), *CONTESTANTS]


def test_one_command_makes_tables_and_plots(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notes, "gate", lambda rows, key: ["Gate: random weights."])
    assert command.main(asked) == 0
    stored = json.loads((tmp_path / "out" / "emoji-flux-tiny-3.json").read_text())
    rows = {row["name"]: row for row in stored["rows"]}
    assert {"plain", "another seed", "toma 0.5", "toma 0.5, guard off"} <= rows.keys()
    assert rows["plain"]["found"]["PSNR"][0] == 100
    assert rows["toma 0.5"]["found"]["PSNR"][0] < 100
    assert {"lite0 distance", "perceptual", "KID × 1000", "FID", "CLIP-T"} <= rows["plain"][
        "found"
    ].keys()
    assert 0 < rows["toma 0.5"]["flops"] < 1
    assert rows["toma 0.5"]["speedup"] > 0
    assert rows["50% of the steps"]["speedup"] == 1.5
    cached = rows["first block cache, half"]
    assert 0 < cached["blocks"] < 1
    assert cached["speedup"] > 0
    assert any("Thresholds: first block cache, half 0." in note for note in stored["notes"])
    assert rows["toma 0.5, guard off"]["pairs"] == 2
    assert any("neither SDXL nor Flux" in note for note in stored["notes"])
    assert any("first 2 blocks of each class stay dense" in note for note in stored["notes"])
    assert stored["command"]
    names = ("emoji-flux-tiny-3", "emoji-flux-tiny-4")
    for name in (f"{name}{end}" for name in names for end in (".md", ".png", "-grid.png")):
        assert (tmp_path / "out" / name).stat().st_size > 0

    # A second run paints and times nothing: it would fail without weights to draw with.
    def fail(*given: object) -> None:
        raise AssertionError("painted again")

    monkeypatch.setattr("benchmarks.quality.produce.paint", fail)
    monkeypatch.setattr("benchmarks.quality.speed.paint", fail)
    assert command.main(asked) == 0

    # Times of one backend are not shown as another's.
    assert command.main([*asked, "--backend", "aot_eager", "--rounds", "0"]) == 0
    stored = json.loads((tmp_path / "out" / "emoji-flux-tiny-3.json").read_text())
    assert [row["speedup"] for row in stored["rows"] if row["name"] == "toma 0.5"] == [None]

    # The first blocks of Flux stay dense; pictures of other options are not taken for these.
    about = noted(tmp_path / "work" / "emoji-flux-tiny" / "3" / "toma-0.5")
    assert about["asked"]["contestant"]["options"]["skip_blocks"] == 2
    with pytest.raises(ValueError, match="pictures of other options"):
        command.main([*asked, "--skip-blocks", "1"])


def test_a_generator_that_ignores_captions_gets_no_table() -> None:
    def rows(near: float, far: float) -> list[Row]:
        pairs = (("another seed", near), ("another caption", far))
        return [
            Row(name, "anchor", 4, 3, False, None, None, {"d": Estimate(at, at - 0.1, at + 0.1)})
            for name, at in pairs
        ]

    assert "0.2 apart, two captions 0.8" in notes.gate(rows(0.2, 0.8), "d")[0]
    with pytest.raises(notes.GateError, match="nothing is written"):
        notes.gate(rows(0.5, 0.6), "d")


def test_without_networks_there_is_a_table_and_no_judgement(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*given: object) -> None:
        raise networks.MissingNetworkError("not installed")

    monkeypatch.setattr(networks, "EfficientNet", absent)
    monkeypatch.setattr(networks, "sscd", absent)
    assert command.main([*asked, "--only", "50% of the steps", "--steps", "3"]) == 0
    out = tmp_path / "out"
    stored = json.loads((out / "emoji-flux-tiny-3.json").read_text())
    assert any("Gate: not judged" in note for note in stored["notes"])
    assert all("PSNR" in row["found"] for row in stored["rows"])
    assert not (out / "emoji-flux-tiny-3.png").exists()


def test_class_names_come_from_timm_or_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(networks.MissingNetworkError, match="pip install timm"):
        settings.imagenet_names()
