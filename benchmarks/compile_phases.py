"""Where the time of a compile goes, by what torch keeps itself: `dynamo_timed` and its counters."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

from torch._dynamo.utils import compilation_time_metrics
from torch._inductor import metrics
from torch._inductor.graph import GraphLowering

STAGES = ("normalize", "analyse", "find", "plan", "guard", "rewrite", "verify")
"""Of the passes, which count as phases of their own."""

# Phases, in the order in which they follow, as sums and differences of torch's.
_PHASES = {
    "dynamo": ("_compile.compile_inner", "-OutputGraph.call_user_compiler"),
    **{stage: (f"toma_fx.{stage}",) for stage in STAGES},
    "aot": ("create_aot_dispatcher_function", "-compile_fx.<locals>.fw_compiler_base"),
    "fx passes": ("_recursive_joint_graph_passes", "_recursive_post_grad_passes"),
    "lowering": ("GraphLowering.run",),
    "scheduling": ("Scheduler.__init__",),
    "codegen": ("GraphLowering.codegen", "-Scheduler.__init__"),
    "c++": ("PyCodeCache.load_by_key_path",),
}


@contextmanager
def measured() -> Iterator[dict[str, Any]]:
    """What a compile takes: filled in at the end of the block. Torch's own counts begin at zero.

    Attributes of the dictionary:
        seconds: of the wall's clock.
        cpu: user and system seconds of this process and of the compilers that it started.
        phases: seconds of the wall's clock, by name; "other" is what none of them counts. The last
            one, C++, waits for compilers that run beside one another.
        counts: graphs, nodes that Inductor was given, loops that were left before it fused them,
            kernels, and runs of the C++ compiler.
    """
    found: dict[str, Any] = {}
    nodes = _Nodes()
    compilation_time_metrics.clear()
    metrics.reset()
    start, used = time.perf_counter(), _cpu()
    with nodes.counted():
        yield found
    found["seconds"] = time.perf_counter() - start
    found["cpu"] = _cpu() - used
    found["phases"] = _phases(found["seconds"])
    found["counts"] = {
        "graphs": _calls("compile_fx_inner"),
        "nodes": nodes.count,
        "loops": metrics.ir_nodes_pre_fusion,
        "kernels": metrics.generated_kernel_count,
        "c++": _calls("compile_file"),
    }


def _phases(seconds: float) -> dict[str, float]:
    found = {name: sum(map(_seconds, parts)) for name, parts in _PHASES.items()}
    return {**found, "other": seconds - sum(found.values())}


def _seconds(part: str) -> float:
    sign = -1.0 if part.startswith("-") else 1.0
    return sign * sum(compilation_time_metrics.get(part.removeprefix("-"), ()))


def _calls(phase: str) -> int:
    return len(compilation_time_metrics.get(phase, ()))


def _cpu() -> float:
    parts = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(part.ru_utime + part.ru_stime for part in parts)


class _Nodes:
    """Counts what Inductor lowers; torch keeps no such count."""

    def __init__(self) -> None:
        self.count = 0

    def counted(self) -> Any:
        """A context in which they are."""
        run = GraphLowering.run

        def counting(lowering: GraphLowering, *args: Any) -> Any:
            self.count += sum(node.op.startswith("call") for node in lowering.module.graph.nodes)
            return run(lowering, *args)

        return mock.patch.object(GraphLowering, "run", counting)


def grouped(phases: Mapping[str, float]) -> dict[str, float]:
    """The stages of the passes as one phase."""
    passes = {"passes": sum(phases[stage] for stage in STAGES)}
    first, *rest = (name for name in phases if name not in STAGES)
    return {first: phases[first], **passes, **{name: phases[name] for name in rest}}
