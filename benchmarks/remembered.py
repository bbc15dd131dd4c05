"""What memory takes on the device: bytes by model and scope, as a table of `docs/memory.md`.

    python -m benchmarks.remembered --page docs/memory.md

Traced on the meta device, so that it needs neither weights nor a GPU; some minutes on one core.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import toma_fx
from toma_fx.cli.inputs import inputs_for
from toma_fx.cli.presets import build, find_preset

_SCOPES = {"region": "region", "block": "block", "auto": "the default"}
_MARKS = ("<!-- remembered -->", "<!-- /remembered -->")


@torch.no_grad()
def mebibytes(model: str, size: int) -> dict[str, float]:
    """By scope: two values of each token, for one slot, at `size` × `size` pixels in bfloat16."""
    module = build(find_preset(model), torch.device("meta"), torch.bfloat16)
    found: dict[str, float] = {}

    def collect(gm: torch.fx.GraphModule, inputs: Sequence[Any]) -> Any:
        for scope in _SCOPES:
            config = toma_fx.TomaConfig(method="refresh", regions="all", scope=scope, slots=1)
            forecast = toma_fx.rewrite(gm, inputs, config).report.forecast
            assert forecast is not None
            found[scope] = forecast.memory_bytes / 2**20
            print(f"{model}, {scope}: {found[scope]:.1f} MiB", flush=True)
        return gm.forward

    torch.compile(module, backend=collect, fullgraph=True)(**inputs_for(module, size, size))
    return found


def table(models: list[str], size: int) -> str:
    """Markdown: a row for each scope, a column for each model."""
    found = {model: mebibytes(model, size) for model in models}
    lines = [f"| scope | {' | '.join(models)} |", "|---" * (1 + len(models)) + "|"]
    for scope, name in _SCOPES.items():
        cells = [f"{found[model][scope]:,.0f} MiB" for model in models]
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
