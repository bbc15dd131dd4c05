"""What several commands take: a model, a picture size, and fields of `TomaConfig`."""

from __future__ import annotations

import argparse
import ast
from pathlib import Path
from typing import Any

import torch
from torch import nn

from toma_fx.cli.inputs import inputs_for
from toma_fx.cli.presets import PRESETS, Preset, build, find_preset
from toma_fx.config import TomaConfig, split_options
from toma_fx.errors import ConfigError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def add_model(parser: argparse.ArgumentParser, *, default: str | None, size: int) -> None:
    """The model and the picture's size."""
    parser.add_argument(
        "model",
        nargs="?" if default else None,
        default=default,
        help=f"a preset ({', '.join(PRESETS)}), a diffusers model or pipeline folder, "
        "or a config.json",
    )
    usual = f"pixels (default: {size}, or what the preset is for)"
    parser.add_argument("--height", type=int, help=usual)
    parser.add_argument("--width", type=int, help=usual)
    parser.add_argument("--frames", type=int, help="of a video (default: what the model is for)")
    parser.set_defaults(side=size)
    parser.add_argument("--batch", type=int, help="items; default: what one picture needs")


def inputs_of(given: argparse.Namespace, preset: Preset, model: nn.Module) -> dict[str, Any]:
    """The arguments of a call for the drawing that the arguments of `add_model` describe.

    Raises:
        ModelError: the model takes no drawing of this size.
    """
    height, width = sides_of(given, preset)
    usual = preset.size[2] if preset.size else None
    frames = usual if given.frames is None else given.frames
    return inputs_for(model, height, width, given.batch, frames, preset.references)


def sides_of(given: argparse.Namespace, preset: Preset) -> tuple[int, int]:
    """Height and width in pixels: what was asked for, else what is usual."""
    height, width = preset.size[:2] if preset.size else (given.side, given.side)
    return (
        height if given.height is None else given.height,
        width if given.width is None else given.width,
    )


def add_config(parser: argparse.ArgumentParser) -> None:
    """The ratio, and every other field as `--set name=value`."""
    parser.add_argument("--ratio", type=float, default=0.5, help="share of tokens removed")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="fields",
        help="another field of TomaConfig: --set window=16 --set order=hilbert",
    )


def config_of(given: argparse.Namespace, **fields: Any) -> TomaConfig:
    """The configuration that the arguments describe.

    Raises:
        ConfigError: a field is unknown or out of range, or lacks its value.
    """
    for pair in given.fields:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set takes NAME=VALUE, not {pair!r}")
        fields[name.strip()] = _value(text)
    return split_options({"ratio": given.ratio, **fields}, ())[0]


def add_run(parser: argparse.ArgumentParser) -> None:
    """A model that runs on this machine, small unless another is named, and its configuration."""
    add_model(parser, default="sdxl-small", size=512)
    add_config(parser)
    parser.add_argument(
        "--on", default="auto", choices=("auto", "cpu", "cuda"), help="where to run"
    )
    add_dtype(parser, "float32")


def running(given: argparse.Namespace) -> tuple[nn.Module, dict[str, Any]]:
    """The model of `add_run` with random weights, and the arguments of a call.

    Raises:
        ModelError: there is no such model, or it takes no picture of this size.
    """
    name = given.on
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    preset = find_preset(given.model)
    model = build(preset, torch.device(name), dtype_of(given.dtype))
    return model, inputs_of(given, preset, model)


def check_writable(option: str, path: Path | None) -> None:
    """Fail before the work, not after it, where its result could not be written.

    Raises:
        OSError: the folder is not there, or the path is one.
    """
    if path is None or path == Path("-"):
        return
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{option} {path}: there is no folder {path.parent}; make it first")
    if path.is_dir():
        raise IsADirectoryError(f"{option} {path} is a folder; name a file in it")


def dtype_of(name: str) -> torch.dtype:
    return _DTYPES[name]


def add_dtype(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--dtype", choices=list(_DTYPES), default=default, help=f"default: {default}"
    )


def _value(text: str) -> Any:
    """Numbers, tuples, True and None as Python writes them; anything else is a word."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
