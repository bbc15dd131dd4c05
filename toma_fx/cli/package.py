"""`toma-fx export` and `toma-fx run-package`: native packages, with their reuse cache."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from toma_fx.ahead.commands import export_command, run_package_command
from toma_fx.cli.inputs import inputs_for
from toma_fx.cli.options import add_config, add_dtype, add_model, config_of, dtype_of, inputs_of
from toma_fx.cli.presets import build, find_preset
from toma_fx.errors import ConfigError


class Export:
    """A model with random weights, or a diffusers folder's configuration, as a package."""

    @staticmethod
    def add(parser: argparse.ArgumentParser) -> None:
        add_model(parser, default=None, size=512)
        add_config(parser)
        add_dtype(parser, "float32")
        parser.add_argument("--on", default="cpu", choices=("cpu", "cuda"), help="device to run on")
        parser.add_argument("--out", type=Path, required=True, metavar="FILE.pt2")
        parser.add_argument(
            "--also",
            action="append",
            default=[],
            metavar="HEIGHTxWIDTH",
            help="another resolution in the same package",
        )

    @staticmethod
    def run(given: argparse.Namespace) -> None:
        config = config_of(given)
        also = [_size(text) for text in given.also]
        device, preset = torch.device(given.on), find_preset(given.model)
        model = build(preset, device, dtype_of(given.dtype))
        calls = [inputs_of(given, preset, model)]
        calls += [inputs_for(model, *size, given.batch, given.frames) for size in also]
        export_command(model, calls, given.out, config)


class RunPackage:
    """Random inputs through a package: loading one runs its native code."""

    @staticmethod
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("package", type=Path, help="a .pt2 file; load only what you trust")
        parser.add_argument("--steps", type=int, default=10, help="denoising steps (default: 10)")

    @staticmethod
    def run(given: argparse.Namespace) -> None:
        run_package_command(given.package, given.steps)


def _size(text: str) -> tuple[int, int]:
    height, cross, width = text.lower().partition("x")
    if not (cross and height.isdigit() and width.isdigit()):
        raise ConfigError(f"--also takes HEIGHTxWIDTH, not {text!r}")
    return int(height), int(width)
