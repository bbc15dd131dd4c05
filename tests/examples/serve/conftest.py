"""Tiny generators behind the example's names, and eager graphs: no Ray, no compiler."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from examples.serve.settings import Settings, Size
from tests.benchmarks.generators import SIZE, install, random
from toma_fx.demo import generators

WIDE, HIGH, SQUARE = Size(24, 16), Size(16, 24), Size(16, 16)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    install(monkeypatch)
    monkeypatch.setattr(generators, "load", random)
    with torch.no_grad():
        yield
    torch._dynamo.reset()


def settings(**changes: Any) -> Settings:
    """Of a server whose windows are small enough for 24 tokens."""
    merging = {"window": 2, "skip_blocks": 0, "min_tokens": 4, "select_every": 3}
    given = {"sizes": (SQUARE, WIDE, HIGH), "steps": 2, "backend": "eager", "merging": merging}
    return Settings(**{**given, **changes})


__all__ = ["HIGH", "SIZE", "SQUARE", "WIDE", "Path", "settings"]
