"""Steps of a denoiser whose blocks are compiled apart, beside those of the same one compiled whole.

    python -m benchmarks.apart --out benchmarks/results/apart_cpu.json

Stages of SDXL and Flux, the default method and one that remembers. Both contestants go through the
door of diffusers, share their weights, see the same pictures of ten steps, and take turns step by
step; on shared cores only the ratio means something. Minutes on two cores, most of them to compile.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import toma_fx
from benchmarks.machine import describe
from benchmarks.race.models import arguments_of, model_of, twin
from toma_fx import TomaConfig
from toma_fx.diffusers import apply, remove
from toma_fx.report import seconds_text
from toma_fx.timing import interleaved

STEPS = 10
WAYS = {"whole": False, "apart": True}


@torch.no_grad()
def measure(
    name: str, method: str, side: int, pictures: int, device: torch.device, inner: str
) -> dict[str, Any]:
    """Steps of both contestants, a selection or a fresh memory in every tenth.

    Args:
        name: of a model of the race.
        method: of merging.
        side: of the picture in pixels.
        pictures: of ten timed steps each.
        device: where it runs.
        inner: the backend behind the passes.
    """
    model = model_of(name, device)
    models = {"whole": model, "apart": twin(model)}
    inputs = arguments_of(name, model, side, side)
    config = TomaConfig(method=method, regions="all", scope="block")
    compiling: dict[str, list[float]] = {}
    for way, regional in WAYS.items():
        apply(models[way], config, regional=regional, options={"inner_backend": inner})
        compiling |= interleaved({way: lambda way=way: models[way](**inputs)}, 1, device)  # type: ignore[misc]
    merged = toma_fx.last_report().summary()
    results: dict[str, list[Tensor]] = {way: [] for way in WAYS}
    runs = {way: stepping(models[way], inputs, results[way]) for way in WAYS}
    interleaved(runs, STEPS, device)  # a picture to warm up
    seconds = interleaved(runs, pictures * STEPS, device)
    medians = {way: statistics.median(found) for way, found in seconds.items()}
    for one in models.values():
        remove(one)
    return {
        "model": name,
        "method": method,
        "side": side,
        "merged": merged,
        "first_call_seconds": {way: found[0] for way, found in compiling.items()},
        "step_seconds": medians,
        "apart_over_whole": medians["apart"] / medians["whole"],
        "apart_over_whole_by_round": statistics.median(
            apart / whole for whole, apart in zip(seconds["whole"], seconds["apart"], strict=True)
        ),
        "largest_relative_difference": max(map(relative, results["apart"], results["whole"])),
        "all": seconds,
    }


def stepping(model: nn.Module, inputs: dict[str, Any], results: list[Tensor]) -> Callable[[], None]:
    """A step of pictures whose timesteps fall."""
    left = itertools.cycle(1 - step / STEPS for step in range(STEPS))
    timestep = torch.as_tensor(inputs["timestep"])

    def step() -> None:
        results.append(model(**{**inputs, "timestep": timestep * next(left)})[0])

    return step


def relative(result: Tensor, expected: Tensor) -> float:
    return float((result - expected).norm() / expected.norm())


def show(rows: list[dict[str, Any]]) -> None:
    names = ("model", "method", "step, whole", "step, apart", "apart ÷ whole", "by round")
    table = Table(*names, "difference", title="steps, blocks compiled apart")
    for row in rows:
        table.add_row(
            f"{row['model']} {row['side']}²",
            row["method"],
            *(seconds_text(row["step_seconds"][way]) for way in WAYS),
            f"{row['apart_over_whole']:.3f}",
            f"{row['apart_over_whole_by_round']:.3f}",
            f"{row['largest_relative_difference']:.0e}",
        )
    Console(width=110).print(table)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=["sdxl-stage", "flux-stage"])
    parser.add_argument("--methods", nargs="+", default=["toma", "refresh"])
    parser.add_argument("--side", type=int, default=512, help="of the picture in pixels")
    parser.add_argument("--on", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--pictures", type=int, default=3, help="of ten timed steps each")
    parser.add_argument("--inner-backend", default="inductor")
    parser.add_argument("--out", type=Path)
    return parser


def main() -> None:
    given = arguments().parse_args()
    warnings.simplefilter("ignore")
    rows: list[dict[str, Any]] = []
    for name, method in itertools.product(given.models, given.methods):
        torch._dynamo.reset()
        how = (given.side, given.pictures, torch.device(given.on), given.inner_backend)
        rows.append(measure(name, method, *how))
        if given.out:  # after each: an interruption loses only what was running
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text(json.dumps({**describe(), "rows": rows}, indent=2) + "\n")
    show(rows)


if __name__ == "__main__":
    main()
