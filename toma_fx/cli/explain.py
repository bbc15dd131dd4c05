"""`toma-fx explain`: what would be merged, and what it is worth, without running the model."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from rich.console import Console

import toma_fx
from toma_fx.cli.inputs import drawn_grid
from toma_fx.cli.options import (
    add_config,
    add_dtype,
    add_model,
    check_writable,
    config_of,
    dtype_of,
    inputs_of,
    sides_of,
)
from toma_fx.cli.presets import build_empty, find_preset
from toma_fx.picture import save_picture


def add(parser: argparse.ArgumentParser) -> None:
    add_model(parser, default=None, size=1024)
    add_config(parser)
    parser.add_argument("--device", help="profile that predicts (default: this machine)")
    add_dtype(parser, "bfloat16")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report; - for stdout")
    parser.add_argument("--png", type=Path, metavar="FILE", help="write a picture of the regions")


def run(given: argparse.Namespace) -> None:
    check_writable("--json", given.json)
    check_writable("--png", given.png)
    config = config_of(given, **({"device": given.device} if given.device else {}))
    preset = find_preset(given.model)
    with Console(stderr=True).status(f"tracing {given.model} without weights"):
        model = build_empty(preset, dtype_of(given.dtype))
        inputs = inputs_of(given, preset, model)
        if preset.needs_grid and config.grid is None:
            grid = drawn_grid(inputs, *sides_of(given, preset))
            config = dataclasses.replace(config, grid=grid)
        report = toma_fx.explain(model, config=config, **inputs)
    text = json.dumps(report.to_dict(), indent=2)
    if given.json == Path("-"):
        sys.stdout.write(text + "\n")
    else:
        print(report, end="")
        if given.json:
            given.json.write_text(text + "\n")
    if given.png:
        print(f"wrote {save_picture(report, given.png)}", file=sys.stderr)
