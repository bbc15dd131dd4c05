"""The command line as a user meets it: output, one-line errors, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import toma_fx
from toma_fx.cli.main import main

SMALL = ["explain", "flux-small", "--height", "256", "--width", "256", "--device", "h200"]


def failing(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(arguments)
    captured = capsys.readouterr().err.strip()
    assert len(captured.splitlines()) == 1, captured
    assert captured.startswith("toma-fx: ")
    return code, captured


def test_explain_prints_json_and_a_picture(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    files = tmp_path / "a.json", tmp_path / "a.png"
    assert main([*SMALL, "--json", str(files[0]), "--png", str(files[1])]) == 0
    out = capsys.readouterr().out
    assert "h200: " in out
    assert "joint_attention" in out
    report = json.loads(files[0].read_text())
    assert report["forecast"]["device"] == "h200"
    assert len(report["regions"]) == 2 * 3 + 4  # joint attention and two MLPs; single blocks
    assert files[1].stat().st_size > 1000


def test_explain_writes_json_alone_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--set", "regions=all", "--set", "window=4", "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [r for r in report["regions"] if r["status"] == "merged"]


@pytest.mark.parametrize("option", ["--json", "--png"])
@pytest.mark.parametrize(("path", "said"), [("gone/a.png", "no folder"), (".", "is a folder")])
def test_explain_checks_where_it_writes_before_the_work(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    option: str,
    path: str,
    said: str,
) -> None:
    monkeypatch.setattr(toma_fx, "explain", lambda *_, **__: pytest.fail("it worked first"))
    code, line = failing(capsys, *SMALL, option, str(tmp_path / path))
    assert code == 1
    assert option in line
    assert said in line


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["explain", "sdx"], 2, "'sdx' is no file and no preset; did you mean 'sdxl'?"),
        ([*SMALL[:2], "--height", "250"], 2, "a height that is a multiple of 16, not 250"),
        ([*SMALL[:2], "--width", "0"], 2, "a width that is a multiple of 16, not 0"),
        ([*SMALL[:-1], "h20"], 2, "no device profile 'h20'"),
        ([*SMALL, "--ratio", "1.5"], 2, "ratio must lie in [0, 1), not 1.5"),
        ([*SMALL, "--set", "windows=4"], 2, "unknown option 'windows'; did you mean 'window'?"),
        ([*SMALL, "--set", "window"], 2, "--set takes NAME=VALUE"),
        ([*SMALL, "--json", "/nowhere/a.json"], 1, "/nowhere/a.json"),
    ],
)
def test_errors_are_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    found, line = failing(capsys, *arguments)
    assert found == code
    assert said in line


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read as JSON"),
        ("[1]", "is no configuration: it holds a list"),
        ("{}", "names no model class"),
        ('{"_class_name": "Nothing"}', "has no model Nothing"),
        ('{"_class_name": "AutoencoderKL"}', "no inputs are known for AutoencoderKL"),
        (
            '{"_class_name": "UNet2DConditionModel", "block_out_channels": [3]}',
            "is no configuration of UNet2DConditionModel",
        ),
    ],
)
def test_broken_configurations(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str, said: str
) -> None:
    (tmp_path / "config.json").write_text(content)
    code, line = failing(capsys, "explain", str(tmp_path))
    assert code == 2
    assert said in line


def test_a_pipeline_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from toma_fx.cli.presets import PRESETS

    preset = PRESETS["flux-small"]
    config: dict[str, Any] = {"_class_name": preset.class_name, **preset.config}
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(config))
    assert main(["explain", str(tmp_path), *SMALL[2:]]) == 0
    by_folder = capsys.readouterr().out
    assert main(SMALL) == 0
    assert capsys.readouterr().out == by_folder


def test_an_empty_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, line = failing(capsys, "explain", str(tmp_path))
    assert code == 2
    assert "holds no config.json" in line


def test_verbose_shows_the_trace(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-v", "explain", "sdx"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_doctor_lists_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for word in ("torch", "triton", "flash-attn", "xformers", "diffusers", "GPU", "registered"):
        assert word in out
    assert "device profile" in out


def test_as_a_module_and_with_help() -> None:
    command = [sys.executable, "-m", "toma_fx", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    for word in ("explain", "bench", "bisect", "demo", "doctor", "exit codes"):
        assert word in result.stdout


def test_wrong_arguments_exit_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["nothing"], ["doctor", "--nothing"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
    assert "unrecognized arguments: --nothing" in capsys.readouterr().err
