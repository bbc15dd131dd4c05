"""How long a plan takes on a GPU: each kernel, and the whole operation, by phase.

    python benchmarks/planning_gpu.py [--out FILE]

Medians of `triton.testing.do_bench`, which clears the L2 cache between runs, in microseconds.
"graph" rows replay a CUDA graph: what is left without the cost of launching from Python.
Prints a table and writes JSON; ends with one line where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results" / "planning_gpu.json"
WINDOWS = 128
CHANNELS = 1280
TEMPERATURE = 1e-3
PHASES = {0: "reuse", 1: "weigh", 2: "select"}


@dataclass(frozen=True)
class Shape:
    """`WINDOWS` windows of `size` tokens in a batch of two, `count` destinations in each."""

    size: int
    count: int
    pairs: bool


@dataclass(frozen=True)
class Row:
    what: str
    phase: int
    size: int
    count: int
    pairs: bool
    microseconds: float


SHAPES = (Shape(64, 32, False), Shape(64, 32, True), Shape(256, 128, False), Shape(256, 128, True))


@dataclass(frozen=True)
class Problem:
    """Tensors of one shape on the GPU, a plan already made in them."""

    hidden: torch.Tensor
    order: torch.Tensor
    phases: dict[int, torch.Tensor]
    similarities: torch.Tensor
    destinations: torch.Tensor
    merging: torch.Tensor
    unmerging: torch.Tensor


def problem(shape: Shape) -> Problem:
    torch.manual_seed(0)
    windows = WINDOWS // 2
    tokens = windows * shape.size
    on_gpu: dict[str, Any] = {"device": "cuda"}
    halves: dict[str, Any] = {**on_gpu, "dtype": torch.bfloat16}
    return Problem(
        hidden=torch.randn(2, tokens, CHANNELS, **halves),
        order=torch.randperm(tokens, **on_gpu),
        phases={phase: torch.tensor(phase, dtype=torch.int32, **on_gpu) for phase in PHASES},
        similarities=torch.empty(WINDOWS, shape.size, shape.size, **on_gpu),
        destinations=torch.arange(shape.count, **on_gpu).repeat(2, windows, 1),
        merging=torch.empty(WINDOWS, shape.count, shape.size, **halves),
        unmerging=torch.empty(WINDOWS, shape.size, shape.count, **halves),
    )


def calls(shape: Shape, phase: int) -> Iterator[tuple[str, Callable[[], None]]]:
    """Each kernel and the operation, bound to tensors whose plan is made."""
    from torch._library.triton import set_wrap_triton_enabled

    from toma_fx.kernels.greedy import launch_greedy
    from toma_fx.kernels.plan import plan_cuda
    from toma_fx.kernels.similarity import launch_similarity
    from toma_fx.kernels.weights import launch_weights

    it = problem(shape)
    due = it.phases[phase]
    outputs = (it.destinations, it.merging, it.unmerging)

    def bare(launch: Callable[..., None], *arguments: Any) -> Callable[[], None]:
        """Launched as the operation does: straight, not through a graph capture's dispatch."""

        def call() -> None:
            with set_wrap_triton_enabled(False):
                launch(*arguments)

        return call

    gather = (it.hidden, it.order, due, it.similarities, WINDOWS // 2)
    bare(launch_similarity, *gather[:2], it.phases[2], *gather[3:])()
    yield "similarity", bare(launch_similarity, *gather)
    yield "greedy", bare(launch_greedy, it.similarities, due, it.destinations, 0, shape.pairs)
    yield "weights", bare(launch_weights, it.similarities, due, *outputs, 0, TEMPERATURE)

    def plan() -> None:
        plan_cuda(it.hidden, it.order, due, *outputs, TEMPERATURE, "transpose", shape.pairs)

    yield "plan", plan


def measure(shape: Shape, phase: int) -> Iterator[Row]:
    from triton.testing import do_bench, do_bench_cudagraph

    def row(what: str, milliseconds: float) -> Row:
        return Row(what, phase, shape.size, shape.count, shape.pairs, 1e3 * milliseconds)

    for what, call in calls(shape, phase):
        yield row(what, do_bench(call, return_mode="median"))
    # The last call is the whole plan.
    yield row("plan, graph", do_bench_cudagraph(call, return_mode="median"))


def show(rows: list[Row], facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"{WINDOWS} windows, {CHANNELS} channels, bfloat16"
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    table = Table(title=title, caption=f"{facts['machine']['gpu']}; {versions}")
    for name in ("window", "destinations", "pairs", "what", "phase", "median µs"):
        table.add_column(name, justify="right" if name == "median µs" else "left")
    for row in rows:
        sizes = (str(row.size), str(row.count), "yes" if row.pairs else "no")
        table.add_row(*sizes, row.what, PHASES[row.phase], f"{row.microseconds:.1f}")
    Console().print(table)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON goes")
    return parser


def main() -> None:
    from benchmarks.machine import describe

    out = arguments().parse_args().out
    if not torch.cuda.is_available():
        sys.exit("planning_gpu: no CUDA device here; run this on a machine with a GPU")
    with torch.no_grad():
        rows = [row for shape in SHAPES for phase in PHASES for row in measure(shape, phase)]
    facts = describe()
    show(rows, facts)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({**facts, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    print(f"written: {out}")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))  # for `benchmarks`, run as a file
    main()
