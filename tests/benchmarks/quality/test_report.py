"""Tables say what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.quality import report
from tests.benchmarks.quality.test_verdicts import ROWS


def test_tables_hold_every_row_and_note(tmp_path: Path) -> None:
    report.write(tmp_path / "new", "model", ROWS, {"machine": "here"}, ["Not SDXL."], "far")
    stored = json.loads((tmp_path / "new" / "model.json").read_text())
    assert stored["rows"][1]["found"]["far"] == [0.2, 0.19, pytest.approx(0.21)]
    text = (tmp_path / "new" / "model.md").read_text()
    assert "| toma 0.5 | 4 | 10 | 1.54× |" in text
    assert "0.1 (0.09 … 0.11) |  |  |  | 0.35 |" in text
    assert "- Not SDXL." in text
    assert '"machine": "here"' in text
