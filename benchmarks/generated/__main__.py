"""Counts what a merged step launches on a GPU.

python -m benchmarks.generated --out benchmarks/results/launches_gpu
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.generated.counted import DEFAULT, MODELS, NOTES, measure, tables
from benchmarks.machine import describe, in_words
from benchmarks.race.contestants import CONTESTANTS


def markdown(found: dict[str, Any]) -> str:
    """What was counted, with the command that counted it."""
    lines = ["# What a step launches", "", in_words(found), "", *NOTES, ""]
    return "\n".join([*lines, *tables(found["rows"])]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(DEFAULT))
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--out", type=Path, help="path without suffix")
    given = parser.parse_args()
    found: dict[str, Any] = {**describe(), "rows": []}
    for row in measure(given.models, given.contestants, given.ratio):
        found["rows"].append(row)
        if given.out:
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
            given.out.with_suffix(".md").write_text(markdown(found))
    print(markdown(found))


if __name__ == "__main__":
    main()
