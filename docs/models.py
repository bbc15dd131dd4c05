"""Writes `models.md`: what becomes of the models that people run now, at their full size.

    python -m docs.models [NAME …]

Models are traced without weights, and nothing runs: half a minute to a few for each. With names,
their rows are written anew and the others stay.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

from toma_fx import Report, TomaConfig, explain
from toma_fx.cli.inputs import drawn_grid, inputs_for
from toma_fx.cli.presets import PRESETS, Preset, build_empty
from toma_fx.report import seconds_text

PAGE = Path(__file__).with_suffix(".md")
DEVICE, DTYPE = "h200", torch.bfloat16
RATIOS = (0.25, 0.5, 0.75)
SIZES: dict[str, tuple[int, int, int | None]] = {
    "kontext": (1024, 1024, None),
    "chroma": (1024, 1024, None),
    "flux2-dev": (1024, 1024, None),
    "flux2-klein": (1024, 1024, None),
    "qwen-image": (1024, 1024, None),
    "qwen-image-edit": (1024, 1024, None),
    "z-image-turbo": (1024, 1024, None),
    "wan21-1.3b": (480, 832, 81),
    "wan22-a14b": (720, 1280, 81),
    "wan22-ti2v-5b": (704, 1280, 121),
    "ltx2": (512, 768, 121),
    "hunyuan-video-15": (720, 1280, 121),
    "cogvideox-5b": (480, 720, 49),
}
_NUMBERS = " / ".join(map(str, RATIOS))
_HEAD = f"""\
# Models

<!-- Written by `python -m docs.models`: edit that. -->

[README](../README.md) · [Works with](works-with.md) · [Refusals](refusals.md)

The models that people run now, as published, at the sizes that they are for; traced without
weights. Regions are every attention and MLP that reads the picture's tokens. Times are
**predicted** from the data sheet of an {DEVICE.upper()}, one call at ratio 0.5; none has been run.
[`toma-fx explain NAME`](command-line.md#toma-fx-explain) says which regions merge, and why others
do not. *By blocks*: before the blocks stands code that no graph can hold (text taken by a mask), so
that a block is compiled alone, and its regions are what the line counts; reuse between steps
needs [the door](diffusers.md#block-by-block).

| model | size | tokens | regions merged | FLOPs left at {_NUMBERS} | one call |
|---|---|--:|--:|--:|--:|
"""


def row(preset: Preset) -> str:
    """The line of a model."""
    height, width, frames = SIZES[preset.name]
    model = build_empty(preset, DTYPE)
    inputs = inputs_for(model, height, width, None, frames, preset.references)
    grid = drawn_grid(inputs, height, width) if preset.needs_grid else None
    reports = [explain(model, config=_config(ratio, grid), **inputs) for ratio in RATIOS]
    usual = reports[1]
    ours = [region for region in usual.regions if not region.reason.startswith("text stream")]
    sizes = f"{width}×{height}" + (f", {frames} frames" if frames else "")
    tokens = max(region.tokens for region in usual.merged)
    start = f"| `{preset.name}` | {sizes} | {tokens:,} |"
    if _compiled_apart(model, usual):
        return f"{start} {_of_blocks(_blocks(model), reports)}"
    left = " / ".join(f"{_left(report):.0%}" for report in reports)
    return f"{start} {len(usual.merged)} of {len(ours)} | {left} | {_times(usual)} |"


def _blocks(model: nn.Module) -> int:
    """How many there are of the layer that repeats most."""
    return max(len(part) for part in model.modules() if isinstance(part, nn.ModuleList))


def _compiled_apart(model: nn.Module, report: Report) -> bool:
    """Whether one graph serves all blocks: code between them that Dynamo cannot trace."""
    return sum(region.kind != "feed_forward" for region in report.merged) < _blocks(model)


def _of_blocks(count: int, reports: list[Report]) -> str:
    """The end of a line where a block is compiled once and runs many times."""
    parts = [report.merged for report in reports]
    left = [sum(r.flops_after for r in part) / sum(r.flops_before for r in part) for part in parts]
    before = count * sum(region.seconds_before for region in parts[1])
    after = count * sum(region.seconds_after for region in parts[1])
    regions = count * len(parts[1])
    times = f"{seconds_text(before)} → {seconds_text(after)}, {before / after:.2f}×"
    shares = " / ".join(f"{one:.0%}" for one in left)
    return f"{regions} of {regions}, by blocks | {shares} | {times} |"


def _config(ratio: float, grid: tuple[int, ...] | None) -> TomaConfig:
    return TomaConfig(ratio=ratio, grid=grid, device=DEVICE, regions="all")


def _left(report: Report) -> float:
    return report.flops_after / report.flops_before


def _times(report: Report) -> str:
    found = report.forecast
    assert found is not None
    before, after = map(seconds_text, (found.seconds_before, found.seconds_after))
    return f"{before} → {after}, {found.speedup:.2f}×"


def read() -> dict[str, str]:
    """The rows of the page, by model."""
    lines = PAGE.read_text().splitlines() if PAGE.exists() else []
    return {line.split("`")[1]: line for line in lines if line.startswith("| `")}


def write(rows: dict[str, str]) -> None:
    lines = [rows[name] for name in SIZES if name in rows]
    PAGE.write_text(_HEAD + "\n".join(lines) + "\n")


def main() -> None:
    """Trace models and write their rows."""
    parser = argparse.ArgumentParser(prog="python -m docs.models", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *SIZES], help="without any, all models")
    names = parser.parse_args().names or list(SIZES)
    for name in names:
        found = row(PRESETS[name])
        print(found, flush=True)
        write({**read(), name: found})


if __name__ == "__main__":
    main()
