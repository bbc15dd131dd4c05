"""How the small models are merged, or remember."""

from __future__ import annotations

from typing import Any

WINDOW = 4
OPTIONS: dict[str, Any] = {
    "inner_backend": "eager",
    "regions": "all",
    "window": WINDOW,
    "min_tokens": 16,
}
RATIOS = (0.5, 0.75)
KEYS = {0.5: "all", 0.75: "computed"}
"""Whose keys and values attention sees, where tokens remember."""
TIMES = (0.9, 0.7, 0.5)
"""Steps of one picture."""


def remembering(ratio: float) -> dict[str, Any]:
    """A fitted trend would be that of a rank's own tokens."""
    memory = {"method": "refresh", "scope": "region", "extrapolate": 0.5}
    return {**OPTIONS, **memory, "ratio": ratio, "keys": KEYS[ratio]}
