"""The commands: what they print and pass on."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import toma_fx
from tests.ahead.conftest import Built
from tests.ahead.small import CONFIG, Small, small_call
from toma_fx.ahead import commands


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=140)


def text_of(console: Console) -> str:
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_export_passes_every_resolution_on(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def export(model: Any, args: Any, kwargs: Any, **options: Any) -> Path:
        given.update(options, kwargs=kwargs)
        options["path"].write_bytes(bytes(2**20))
        return Path(options["path"])

    monkeypatch.setattr(commands, "export", export)
    calls = [small_call(), small_call(8, 12)]
    path = commands.export_command(Small(), calls, tmp_path / "a.pt2", CONFIG, console=console)
    assert path == tmp_path / "a.pt2"
    assert given["kwargs"] is calls[0]
    assert given["also"] == [((), calls[1])]
    assert given["config"] is CONFIG
    assert "1.0 MiB, 2 entries" in text_of(console)


def test_run_package_times_every_entry(console: Console, small_package: Built) -> None:
    package = commands.run_package_command(small_package.path, 5, console=console)
    stats = package.stats()
    assert (stats.steps, stats.selections, stats.reuses) == (10, 4, 4)
    printed = text_of(console)
    assert "Small, ratio 0.5, cpu, torch" in printed
    assert "model_2" in printed
    assert "10 steps: 4 selections, 6 weighings, 4 reuses" in printed


def test_run_package_takes_inputs(console: Console, small_package: Built) -> None:
    call = small_call(8, 12)
    package = commands.run_package_command(small_package.path, 1, call, console)
    assert package.stats().steps == 1
    with pytest.raises(toma_fx.CallError, match="sample is"):
        commands.run_package_command(
            small_package.path, 1, {**call, "sample": torch.zeros(1)}, console
        )


def test_random_calls_of_nested_arguments(sdxl_package: Built) -> None:
    package = toma_fx.load(sdxl_package.path)
    (entry,) = (commands.Entry.from_dict(entry) for entry in package.metadata["entries"])
    call = commands.random_call(entry)
    assert call.keys() == sdxl_package.call.keys()
    assert call["added_cond_kwargs"]["time_ids"].shape == (1, 6)
    assert package(**call)[0].shape == (1, 4, 16, 16)
