"""A result file that is whole at any time: machine, versions, command, and rows so far."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class Notes:
    """Rows of one phase in one JSON file, written anew after each.

    Args:
        path: of the file; what it holds is begun anew.
    """

    def __init__(self, path: Path) -> None:
        from benchmarks.machine import describe

        self.path = path
        self._facts = describe()
        self.rows: list[dict[str, Any]] = []
        self.save()

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self.save()

    def save(self) -> None:
        write_json(self.path, {**self._facts, "rows": self.rows})


def write_json(path: Path, found: Any) -> None:
    """The whole file or the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(found, indent=1) + "\n")
    os.replace(draft, path)


def read_json(path: Path) -> dict[str, Any]:
    """Nothing where there is no file, or none that can be read."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found
