"""`toma-fx bench`: a denoising step on this machine, plain and merged, random weights."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch._inductor import list_mode_options

import toma_fx
from toma_fx.cli.options import add_run, config_of, running
from toma_fx.config import TomaConfig
from toma_fx.report import seconds_text
from toma_fx.timing import interleaved


def add(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each (default: 5)")
    parser.add_argument(
        "--mode",
        choices=list(list_mode_options()),
        help="as in torch.compile(mode=...)",
    )


def run(given: argparse.Namespace) -> None:
    console = Console()
    # Falling timesteps of one picture: plans are made on their schedule, as in a real generation.
    config = config_of(given)
    model, inputs = running(given)
    with torch.no_grad():
        calls = contestants(model, inputs, config, given.mode)
        for name in track(list(calls), "compiling", console=console, transient=True):
            calls[name]()
        report = toma_fx.last_report()
        rounds = track(range(given.rounds), "timing", console=console, transient=True)
        seconds = interleaved(calls, rounds, next(model.parameters()).device)
    _show(seconds, report, console)


def contestants(
    model: torch.nn.Module, inputs: dict[str, Any], config: TomaConfig, mode: str | None
) -> dict[str, Callable[[], Any]]:
    """Plain and merged, compiled alike: `torch.compile` takes a mode or options, not both."""
    fields = {name: getattr(config, name) for name in TomaConfig.field_names()}
    fields |= list_mode_options(mode) if mode else {}
    plain = torch.compile(_wrapped(model), mode=mode)
    merged = torch.compile(_wrapped(model), backend="toma", options=fields)
    clock = iter(range(10**6, 0, -1))

    def call(compiled: Any) -> Callable[[], Any]:
        kind = inputs["timestep"]
        return lambda: compiled(torch.full_like(kind, 1e-3 * next(clock)), inputs)

    return {"torch.compile": call(plain), "toma": call(merged)}


def _wrapped(model: torch.nn.Module) -> torch.nn.Module:
    """A module of its own for each contestant: Dynamo keeps its caches by code."""

    class Step(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, timestep: torch.Tensor, inputs: dict[str, Any]) -> Any:
            return self.inner(**{**inputs, "timestep": timestep})

    return Step()


def _show(seconds: dict[str, list[float]], report: toma_fx.Report, console: Console) -> None:
    print(report, end="")
    table = Table("", "a step (median)", "spread", "speed", "predicted")
    plain = seconds["torch.compile"]
    for name, found in seconds.items():
        speed = statistics.median(a / b for a, b in zip(plain, found, strict=True))
        forecast = report.forecast.speedup if report.forecast and name == "toma" else 1.0
        spread = f"{seconds_text(min(found))} … {seconds_text(max(found))}"
        median = seconds_text(statistics.median(found))
        table.add_row(name, median, spread, f"{speed:.2f}×", f"{forecast:.2f}×")
    console.print(table)
