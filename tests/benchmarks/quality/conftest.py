"""A tiny Flux generator with random weights, as the benchmark loads one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("accelerate")
pytest.importorskip("scipy")

from benchmarks.quality.painters import EmojiPainter
from benchmarks.quality.produce import Job
from tests.benchmarks.generators import CAPTIONS, SIZE, install, weights


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    install(monkeypatch)
    yield
    torch._dynamo.reset()


@pytest.fixture
def flux(tmp_path: Path) -> Path:
    return weights("emoji-flux", tmp_path)


@pytest.fixture
def painter(flux: Path) -> EmojiPainter:
    return EmojiPainter("emoji-flux", SIZE, torch.device("cpu"), flux)


@pytest.fixture
def unet(tmp_path: Path) -> EmojiPainter:
    return EmojiPainter("emoji-sdxl", SIZE, torch.device("cpu"), weights("emoji-sdxl", tmp_path))


@pytest.fixture
def job() -> Job:
    return Job(CAPTIONS, range(4), steps=2, batch=2, backend="eager")
