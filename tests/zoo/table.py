"""The table of all models, `table.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("table.json")


def read() -> dict[str, Any]:
    return json.loads(PATH.read_text()) if PATH.exists() else {}


def write(table: dict[str, Any]) -> None:
    PATH.write_text(json.dumps(dict(sorted(table.items())), indent=1, ensure_ascii=False) + "\n")


def summary(row: dict[str, Any]) -> str:
    """One line, and one for each kind of region."""
    flags = [name for name in ("exact", "same at ratio 0") if not row[name]]
    wrong = f"  NOT {', NOT '.join(flags)}" if flags else ""
    breaks = "" if row["fullgraph"] else ", graph breaks"
    lines = [f"{row['attention']} attentions merged, change {row['change']}{breaks}{wrong}"]
    lines += [f"         {count} × {text}" for text, count in row["regions"].items()]
    lines += [f"         note: {note}" for note in row["notes"]]
    return "\n".join(lines)
