"""What memory takes on the device: bytes by model and scope, as a table of `docs/memory.md`.

    python -m benchmarks.remembered --page docs/memory.md

Traced on the meta device, so that it needs neither weights nor a GPU; a minute or two.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import torch

import toma_fx
from toma_fx.cli.inputs import inputs_for
from toma_fx.cli.presets import build, find_preset

_SCOPES = {"region": "region", "block": "block", "auto": "largest that is proven"}
_MARKS = ("<!-- remembered -->", "<!-- /remembered -->")


def mebibytes(model: str, size: int, **options: object) -> float:
    """Of a model's memory at `size` × `size` pixels in bfloat16, of all slots."""
    module = build(find_preset(model), torch.device("meta"), torch.bfloat16)
    config = toma_fx.TomaConfig(method="refresh", regions="all", **options)  # type: ignore[arg-type]
    report = toma_fx.explain(module, config=config, **inputs_for(module, size, size))
    assert report.forecast is not None
    return report.forecast.memory_bytes / 2**20


def table(models: list[str], size: int) -> str:
    """Markdown: a row for each scope, a column for each model and length of history."""
    columns = [(model, history) for model in models for history in (1, 2)]
    head = [f"{model}, {history} value{'s' * (history - 1)}" for model, history in columns]
    lines = [f"| scope | {' | '.join(head)} |", "|---" * (1 + len(head)) + "|"]
    for scope, name in _SCOPES.items():
        cells = [
            f"{mebibytes(model, size, scope=scope, history=history, slots=1):,.0f} MiB"
            for model, history in columns
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=["sdxl", "flux-dev"])
    parser.add_argument("--size", type=int, default=1024, help="pixels, one side")
    parser.add_argument("--page", type=Path, help="put the table between its marks in a page")
    given = parser.parse_args()
    found = table(given.models, given.size)
    print(found)
    if given.page is not None:
        first, last = map(re.escape, _MARKS)
        text = given.page.read_text()
        new = f"{_MARKS[0]}\n{found}\n{_MARKS[1]}"
        given.page.write_text(re.sub(f"{first}.*?{last}", lambda _: new, text, flags=re.S))


if __name__ == "__main__":
    main()
