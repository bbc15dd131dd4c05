"""`toma-fx bisect`: which merged regions change a model's result by more than a tolerance."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console

from toma_fx.bisect import bisect, change
from toma_fx.cli.options import add_run, config_of, running
from toma_fx.errors import ConfigError


def add(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.1,
        help="largest relative change that is right (default: 0.1); NaN is always wrong",
    )
    parser.add_argument("--steps", type=int, default=1, help="denoising steps (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and inputs (default: 0)")
    parser.add_argument(
        "--inner",
        default="eager",
        metavar="BACKEND",
        help="compiles the merged graph: eager (default), aot_eager, inductor",
    )


def run(given: argparse.Namespace) -> None:
    if given.tolerance < 0 or given.steps < 1:
        raise ConfigError("--tolerance must be at least 0, --steps at least 1")
    console, config = Console(stderr=True, highlight=False), config_of(given)
    torch.manual_seed(given.seed)
    model, inputs = running(given)
    with torch.no_grad():
        plain = _denoised(model, inputs, given.steps)
    last = 0.0

    def wrong(merged: Callable[..., Any]) -> bool:
        nonlocal last
        last = change(plain, _denoised(merged, inputs, given.steps))
        return not last <= given.tolerance

    def tell(regions: int, failed: bool) -> None:
        verdict = "wrong" if failed else "right"
        console.print(f"{regions:4} regions merged: change {last:.3g}, {verdict}")

    found = bisect(model, wrong, config=config, inner_backend=given.inner, tell=tell)
    print(found, end="")


def _denoised(model: Callable[..., Any], inputs: dict[str, Any], steps: int) -> list[Any]:
    """What the model predicts at each step of one picture, the timestep falling."""
    shares = (1 - step / steps for step in range(steps))
    return [model(**{**inputs, "timestep": share * inputs["timestep"]}) for share in shares]
