"""Where the time of a compiled step goes.

Inductor names each kernel that it generates after the operations it fuses. A backend here puts
the part of each node (see `labels`) where that name is made, so that a profile of the compiled
step tells the parts apart, on a CPU and on CUDA alike; nothing is compiled differently.

A fused kernel counts as the first of its parts in `RANK`, on a GPU in `GENERATED_RANK`: a norm that
also adds the residual and gathers is a norm, as it is in the plain step. Batched products are merge
or unmerge by their shapes, which are those of the graph's.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch._dynamo.backends.registry import register_backend
from torch.autograd.profiler_util import FunctionEvent

from benchmarks.race.labels import PARTS, operation, part_of_each
from benchmarks.race.pace import CYCLE, step_seconds
from benchmarks.race.profiled import is_device_kernel, profile_step
from benchmarks.race.start import Entry

BACKEND = "parts"
GAPS = "launch gaps"
RANK = ("attention", "linears", "convolutions", "norms", "unmerge", "merge", "planning", "other")
# On a GPU products are operations of libraries: what Inductor generates there only reads them.
GENERATED_RANK = (*RANK[3:7], *RANK[:3], "other")
_FUSED = re.compile(r"(?:cpp|triton_\w+?)_(?:fused_)(.*)")
_PLANNING = re.compile(r"(similarity|greedy_\w+|weights)_kernel")  # toma_fx's own, on CUDA
_BY_EVENT = (
    ("planning", ("toma_fx::",)),
    ("attention", ("scaled_dot_product", "flash_attention")),
    ("convolutions", ("convolution",)),
    ("norms", ("layer_norm", "group_norm", "rms_norm")),
    ("linears", ("aten::addmm", "aten::mm", "aten::linear", "mkl::", "_linear_pointwise")),
)
_PRODUCTS = ("aten::bmm", "aten::baddbmm", "aten::matmul")
Shapes = tuple[tuple[int, ...], ...]

# Of the graphs compiled last: shapes of the operands of batched products, and their parts.
_products: dict[Shapes, str] = {}


@register_backend(name=BACKEND)
def _parts(gm: fx.GraphModule, example_inputs: Sequence[Any], **options: Any) -> Callable[..., Any]:
    """Inductor, with kernels named after parts of a step."""
    from torch._inductor.compile_fx import compile_fx

    for node, part in part_of_each(gm.graph).items():
        node.meta["source_fn_stack"] = [(node.name, part)]
        if operation(node) in ("bmm", "baddbmm"):
            _products[_operands(node)] = part
    naming = {
        "cpp.descriptive_names": "torch",
        "triton.descriptive_names": "torch",
        "cpp.enable_kernel_profile": True,
    }
    return compile_fx(gm, list(example_inputs), config_patches=naming)


def _operands(node: fx.Node) -> Shapes:
    values = [source.meta["val"] for source in node.all_input_nodes[-2:]]
    return tuple(tuple(map(int, value.shape)) for value in values)


def parts_of(
    running: dict[str, Entry], cycles: int, device: torch.device
) -> dict[str, dict[str, float]]:
    """Seconds by part of a step on average over its schedule, everyone's steps in turns."""
    found = {name: {part: list[float]() for part in PARTS} for name in running}
    for step in range(cycles * CYCLE):
        for name, entry in running.items():
            events = profile_step(lambda entry=entry, step=step: entry.step(step), device)
            for part, seconds in seconds_by_part(events, device).items():
                found[name][part].append(seconds)
    return {
        name: {part: step_seconds(each, running[name].phases) for part, each in parts.items()}
        for name, parts in found.items()
    }


def seconds_by_part(found: Any, device: torch.device) -> dict[str, float]:
    """Seconds of a profiled step by part: of the device where there is one, else of the host."""
    total = dict.fromkeys(PARTS, 0.0)
    events = found.events()
    on_device = device.type == "cuda"
    for event in events:
        if event.cpu_parent is None and not is_device_kernel(event):
            (_add_device if on_device else _add_host)(event, total)
    if on_device:
        fused = [e for e in events if is_device_kernel(e) and _tells_its_part(e.name)]
        for event in fused:
            total[part_of_event(event) or "other"] += event.device_time_total * 1e-6
        kernels = sum(e.device_time_total for e in events if is_device_kernel(e)) * 1e-6
        total["other"] += max(0.0, kernels - sum(total.values()))
    return total


def _add_host(event: FunctionEvent, total: dict[str, float]) -> None:
    """Add an event with all inside of it, if its part is known; else go inside."""
    part = part_of_event(event)
    if part is not None:
        total[part] += event.cpu_time_total * 1e-6
        return
    total["other"] += event.self_cpu_time_total * 1e-6
    for child in event.cpu_children:
        _add_host(child, total)


def _add_device(event: FunctionEvent, total: dict[str, float], part: str | None = None) -> None:
    """Add the kernels that an operation launches to the outermost part around it.

    Kernels whose names tell their part are counted by those.
    """
    part = part or part_of_event(event)
    for kernel in event.kernels:
        if not _tells_its_part(kernel.name):
            total[part or "other"] += kernel.duration * 1e-6
    for child in event.cpu_children:
        _add_device(child, total, part)


def _tells_its_part(kernel: str) -> bool:
    return bool(_FUSED.match(kernel) or _PLANNING.match(kernel))


def part_of_event(event: FunctionEvent) -> str | None:
    """The part of a kernel or operation by its name and shapes; None for what only contains."""
    if _PLANNING.match(event.name):
        return "planning"
    fused = _FUSED.search(event.name)
    if fused:
        words = set(fused.group(1).split("_"))
        rank = GENERATED_RANK if event.name.startswith("triton") else RANK
        return next((part for part in rank if part in words), "other")
    if event.name in _PRODUCTS:
        return _part_of_product([tuple(shape) for shape in event.input_shapes if len(shape) == 3])
    for part, names in _BY_EVENT:
        if any(name in event.name for name in names):
            return part
    return None


def _part_of_product(shapes: list[tuple[int, ...]]) -> str:
    """By two operands that follow each other; a summand may stand before, the result behind."""
    pairs = itertools.pairwise(shapes)
    return next((_products[pair] for pair in pairs if pair in _products), "linears")
