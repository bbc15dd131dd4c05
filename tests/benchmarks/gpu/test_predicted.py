"""What is predicted again takes the place of what was there."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.predicted import replaced


def row(contestant: str, ratio: float, seconds: float) -> dict[str, Any]:
    told = {"model": "sdxl", "side": 1024, "contestant": contestant}
    return {**told, "ratio": ratio, "seconds": seconds}


def test_rows_keep_their_order() -> None:
    old = [row("toma", 0.5, 1.0), row("refresh", 0.5, 2.0), row("refresh", 0.75, 3.0)]
    found = replaced(old, [row("refresh", 0.5, 4.0), row("tofu", 0.5, 5.0)])
    assert [one["seconds"] for one in found] == [1.0, 4.0, 3.0, 5.0]
