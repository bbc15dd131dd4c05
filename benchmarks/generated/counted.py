"""What a merged step launches on a GPU, and the bytes that it moves, beside the plain step.

A level of SDXL and blocks of Flux.1-dev at full width, 1024², bfloat16, for an H100 that is not
there (see `pretended`). A generated kernel counts as the first part in the order attention,
linears, convolutions, norms, unmerge, merge, planning, other: what a norm adds, gathers or unmerges
beside it costs no launch of its own, and its bytes stand at the norm.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch._dynamo.backends.registry import lookup_backend

import toma_fx
from benchmarks.generated.launches import by_part, fused, launches
from benchmarks.generated.pretended import lowered
from benchmarks.race.contestants import CONTESTANTS, REFERENCE
from benchmarks.race.labels import PARTS
from benchmarks.race.parts import BACKEND
from toma_fx.cli.inputs import inputs_for
from toma_fx.cli.presets import PRESETS, Preset, build
from toma_fx.config import METHODS

_LEVEL = {
    **PRESETS["sdxl"].config,
    "down_block_types": ("CrossAttnDownBlock2D",),
    "mid_block_type": None,
    "up_block_types": ("CrossAttnUpBlock2D",),
    "block_out_channels": (640,),
    "transformer_layers_per_block": (1,),
    "attention_head_dim": (10,),
    "layers_per_block": 1,
}
# Name, preset, side of the picture in pixels (a level sees half of each side of the latents).
MODELS: dict[str, tuple[str, Preset, int]] = {
    "sdxl-level": (
        "the level of SDXL with 640 channels: 3 blocks, 2 × 4,096 tokens",
        Preset("sdxl-level", PRESETS["sdxl"].class_name, _LEVEL),
        512,
    ),
    "flux-blocks": (
        "Flux.1-dev: 1 joint and 2 single blocks, 4,096 + 512 tokens",
        Preset(
            "flux-blocks",
            PRESETS["flux-dev"].class_name,
            {"guidance_embeds": True, "num_layers": 1, "num_single_layers": 2},
        ),
        1024,
    ),
}
DEFAULT = (REFERENCE, "toma", "toma, scope block", *(m for m in METHODS if m != "toma"))


def backend_of(contestant: str, ratio: float) -> Callable[[fx.GraphModule, Sequence[Any]], Any]:
    """Compiles as the race does, for an H100."""
    found = CONTESTANTS[contestant]
    if found.how == "compile":
        plain: Callable[[fx.GraphModule, Sequence[Any]], Any] = lookup_backend(BACKEND)
        return plain
    options = {"ratio": ratio, "regions": "all", "device": "h100", "inner_backend": BACKEND}
    options |= found.options
    return lambda gm, examples: toma_fx.toma_backend(gm, examples, options=options)


def model_and_inputs(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """On the meta device; inputs on a CPU."""
    _, preset, side = MODELS[name]
    model = build(preset, torch.device("meta"), torch.bfloat16)
    shapes = inputs_for(model, side, side)

    def real(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: real(part) for key, part in value.items()}
        return torch.zeros_like(value, device="cpu") if isinstance(value, torch.Tensor) else value

    return model, real(shapes)


def measure(names: list[str], contestants: list[str], ratio: float) -> Iterator[dict[str, Any]]:
    for name in names:
        for contestant in contestants:
            model, inputs = model_and_inputs(name)
            start = time.perf_counter()
            try:
                (graph,) = lowered(model, inputs, backend_of(contestant, ratio))
            except Exception as error:
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                yield {"model": name, "contestant": contestant, "failed": reason}
                continue
            found = launches(graph)
            merged = 0 if contestant == REFERENCE else len(toma_fx.last_report().merged)
            print(f"{name}, {contestant}: {time.perf_counter() - start:.0f} s", flush=True)
            yield {
                "model": name,
                "contestant": contestant,
                "ratio": None if contestant == REFERENCE else ratio,
                "merged": merged,
                "parts": by_part(found),
                "fused_unmerges": fused(found, within="unmerge"),
                "fused_merges": fused(found, within="merge"),
            }


def tables(measured: list[dict[str, Any]]) -> list[str]:
    """Lines of Markdown, a table for each model."""
    lines: list[str] = []
    for name, (title, *_) in MODELS.items():
        rows = [row for row in measured if row["model"] == name]
        done = [row for row in rows if "parts" in row]
        if not done:
            continue
        lines += [f"## {title[0].upper()}{title[1:]}", "", "Launches, and MB moved:", ""]
        names = [row["contestant"] for row in done]
        lines += ["| part | " + " | ".join(names) + " |", "|" + "---|" * (1 + len(names))]
        for part in (*PARTS, "all"):
            cells = [_cell(row["parts"][part]) for row in done]
            lines.append(f"| {part} | {' | '.join(cells)} |")
        for key, what in (("merged", "regions merged"), ("fused_unmerges", "unmerges in norms")):
            lines.append(f"| {what} | {' | '.join(str(row[key]) for row in done)} |")
        lines.append("")
        lines += [f"- {r['contestant']}: failed: {r['failed']}" for r in rows if "failed" in r]
    return lines


NOTES = (
    "Code that Inductor generates for an H100 (bfloat16, 1024², ratio 0.5), read and not run.",
    "Bytes are those of every buffer that a kernel touches, once. Planning kernels return at once",
    "in steps that reuse their plan; what they move then is a few bytes.",
)


def _cell(part: dict[str, int]) -> str:
    return f"{part['launches']}, {part['bytes'] / 1e6:.1f}" if part["launches"] else ""
