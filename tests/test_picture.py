"""The picture of a report: written, and of every fate."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest

from tests.test_report import REFUSED, region
from toma_fx import Report
from toma_fx.errors import MissingPackageError
from toma_fx.picture import save_picture


@pytest.mark.parametrize("timed", [True, False])
def test_a_strip_for_each_kind(tmp_path: Path, timed: bool) -> None:
    from PIL import Image

    times = {"seconds_before": 1e-3, "seconds_after": 5e-4} if timed else {}
    one = Report([region(**times)])
    both = Report([region(**times), region(status="skipped", **times), REFUSED])
    sizes = [Image.open(save_picture(r, tmp_path / "a.png")).size for r in (one, both)]
    assert sizes[1][1] > sizes[0][1]


def test_an_empty_report_has_a_picture_too(tmp_path: Path) -> None:
    assert save_picture(Report(), tmp_path / "a.svg").read_text().startswith("<?xml")


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingPackageError, match="pip install matplotlib"):
        save_picture(Report(), tmp_path / "a.png")
