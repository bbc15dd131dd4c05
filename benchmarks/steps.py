"""What a merged step costs beside a plain compiled one, on this machine, interleaved in one run.

    python -m benchmarks.steps --out benchmarks/results/steps_cpu.json

The model has SDXL's layout at widths (320, 640), depths (1, 4), 96×96 latents, one
item. A reuse step neither selects nor weighs; with memory every step is alike. The FLOP ceiling is
what counting multiply-adds allows. Times are wall-clock medians; on shared cores only the ratios
mean something.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from rich.console import Console
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

import toma_fx
from benchmarks.machine import describe
from toma_fx.operations import SELECT
from toma_fx.timing import interleaved

_ONCE: dict[str, dict[str, int]] = {
    "toma": {"select_every": 10**6, "weigh_every": 10**6},
    "refresh": {},
}
"""What makes every step but the first a reuse step, by method."""


def model_of(widths: tuple[int, int], depths: tuple[int, int]) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=widths,
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=depths,
        attention_head_dim=tuple(width // 64 for width in widths),
        cross_attention_dim=2048,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
        use_linear_projection=True,
    ).eval()


def inputs_of(side: int, batch: int) -> dict[str, Any]:
    conditions = {"text_embeds": torch.randn(batch, 1280), "time_ids": torch.randn(batch, 6)}
    return {
        "sample": torch.randn(batch, 4, side, side),
        "encoder_hidden_states": torch.randn(batch, 77, 2048),
        "added_cond_kwargs": conditions,
        "return_dict": False,
    }


def compile_merged(model: torch.nn.Module, method: str, ratio: float) -> Callable[..., Any]:
    """A compiled call of its own; a wrapper keeps its cache apart from the plain model's."""
    options = {"method": method, "ratio": ratio, "regions": "all", **_ONCE[method]}
    return torch.compile(_call(model), backend="toma", fullgraph=True, options=options)


def _call(model: torch.nn.Module) -> Callable[..., Any]:
    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, timestep: torch.Tensor, kwargs: dict[str, Any]) -> Any:
            return self.inner(timestep=timestep, **kwargs)[0]

    return Wrapped()


def ceiling(model: torch.nn.Module, inputs: dict[str, Any], report: toma_fx.Report) -> float:
    """Plain FLOPs over merged FLOPs of the whole model, convolutions included.

    Counted on the meta device, with attention as the two matmuls that it is: the counter knows
    no fused attention of the CPU.
    """
    shapes = tree_map(lambda t: t.to("meta") if isinstance(t, torch.Tensor) else t, inputs)
    with torch.device("meta"):
        twin = type(model).from_config(model.config).eval()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        twin(timestep=torch.tensor(500.0, device="meta"), **shapes)
    total = counter.get_total_flops()
    return total / (total - report.flops_before + report.flops_after)


def selection_seconds(rounds: int, windows: int = 64, n: int = 64, d: int = 32) -> float:
    """Median of one planning call: selection and weights of one group's windows."""
    hidden = torch.randn(1, windows * n, 640)
    plan = (torch.zeros(1, windows, d, dtype=torch.int64), torch.zeros(windows, d, n))
    phase = torch.tensor(SELECT, dtype=torch.int32)
    arguments = (hidden, None, phase, *plan, torch.zeros(windows, n, d), 1e-3, "transpose", False)
    found = interleaved({"plan": lambda: torch.ops.toma_fx.plan_(*arguments)}, rounds)
    return statistics.median(found["plan"])


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=_ONCE, default=list(_ONCE))
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5, 0.75])
    parser.add_argument("--side", type=int, default=96, help="latents, one side")
    parser.add_argument("--widths", type=int, nargs=2, default=[320, 640])
    parser.add_argument("--depths", type=int, nargs=2, default=[1, 4])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()

    model = model_of(tuple(given.widths), tuple(given.depths))
    inputs = inputs_of(given.side, given.batch)
    plain = torch.compile(_call(model), fullgraph=True)
    contestants: dict[str, Callable[..., Any]] = {"plain": plain}
    ceilings = {}
    clock = iter(range(10**6, 0, -1))  # a timestep that falls: every step but the first reuses
    plain(torch.tensor(float(next(clock))), inputs)
    for method, ratio in itertools.product(given.methods, given.ratios):
        merged = compile_merged(model, method, ratio)
        merged(torch.tensor(float(next(clock))), inputs)
        name = f"{method} {ratio:g}"
        contestants[name] = merged
        ceilings[name] = ceiling(model, inputs, toma_fx.last_report())
    calls = {
        name: (lambda run=run: run(torch.tensor(float(next(clock))), inputs))
        for name, run in contestants.items()
    }
    interleaved(calls, 1)
    seconds = interleaved(calls, given.rounds)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    planning = selection_seconds(given.rounds)

    table = Table("contestant", "s/step", "speedup", "ceiling", "share", title="reuse steps")
    rows = []
    for name, median in medians.items():
        # Ratios of one round, not of medians: what disturbs a round disturbs all its calls.
        speedup = statistics.median(
            a / b for a, b in zip(seconds["plain"], seconds[name], strict=True)
        )
        top = ceilings.get(name, 1.0)
        rows.append(
            {
                "name": name,
                "seconds": median,
                "speedup": speedup,
                "ceiling": top,
                "all": seconds[name],
            }
        )
        table.add_row(
            name, f"{median:.3f}", f"{speedup:.2f}×", f"{top:.2f}×", f"{speedup / top:.2f}"
        )
    Console().print(table)
    share = planning / medians.get("toma 0.5", medians["plain"])
    Console().print(
        f"one selection, 64 windows of 64 tokens, 32 picks: {planning * 1e3:.1f} ms, "
        f"{share:.1%} of a step"
    )
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        result = {"rows": rows, "planning_seconds": planning, "planning_share": share}
        given.out.write_text(json.dumps({**describe(), **result}, indent=2))


if __name__ == "__main__":
    main()
