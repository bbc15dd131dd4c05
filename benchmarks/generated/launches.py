"""Every launch of a compiled step: which part of it it belongs to, and how many bytes it moves.

Bytes are Inductor's own count: every buffer that a kernel reads or writes, once, as far as it
touches it. Operations of a library (products, attention, convolutions) read their inputs and write
their outputs. Caches are not in it: a small buffer that was just written may never reach memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.generated.pretended import Lowered
from benchmarks.race.labels import PARTS, by_name
from benchmarks.race.parts import GENERATED_RANK

KERNELS_OF_A_PLAN = 3
_PLAN, _GENERATED, _BATCHED = "plan_", "triton", ("bmm", "baddbmm")


@dataclass(frozen=True)
class Launch:
    """One kernel.

    Attributes:
        part: of the step, a member of `PARTS`; of a generated kernel that does several things the
            first in `GENERATED_RANK`.
        kind: `"triton"` for one that Inductor generates, else the name of the operation.
        moved: bytes read and written.
        parts: all that a generated kernel does.
    """

    part: str
    kind: str
    moved: int
    parts: tuple[str, ...]


def launches(found: Lowered) -> list[Launch]:
    """In the order of the program. The graph must have been compiled by the backend of parts."""
    from torch._inductor.virtualized import V

    with V.set_graph_handler(found.graph):
        return [launch for node in found.graph.scheduler.nodes for launch in _of(node)]


def _of(node: Any) -> Iterator[Launch]:
    from torch._inductor import ir
    from torch._inductor.scheduler import ExternKernelSchedulerNode, NopKernelSchedulerNode

    inner = node.get_nodes()
    made = [part.node for part in inner if not isinstance(part, NopKernelSchedulerNode)]
    if not made or all(isinstance(item, ir.MultiOutput) for item in made):
        return
    parts = tuple(_parts(origin for item in made for origin in item.get_origins()))
    moved = int(node.get_read_write_buffers_sizes())
    if not isinstance(node, ExternKernelSchedulerNode):
        yield Launch(parts[0], _GENERATED, moved, parts)
        return
    kind = _operation(made[0])
    moved += sum(_bytes(output) for output in getattr(made[0], "outputs", ()))
    kernels = KERNELS_OF_A_PLAN if kind == _PLAN else 1
    # Products of batches merge and unmerge; what else a library does, its name says.
    known = "planning" if kind == _PLAN else by_name(kind)
    part = parts[0] if kind in _BATCHED or known == "other" else known
    for _ in range(kernels):
        yield Launch(part, kind, moved // kernels, parts)


def _parts(origins: Iterable[Any]) -> Iterator[str]:
    """The parts that some nodes belong to, as `race.parts` notes them in their metadata."""
    stacks = (origin.meta.get("source_fn_stack") for origin in origins)
    words = {str(stack[-1][1]) for stack in stacks if stack}
    found = [part for part in GENERATED_RANK if part in words]
    yield from found or ["other"]


def _operation(node: Any) -> str:
    overload = getattr(node, "op_overload", None)
    if overload is not None:
        return str(overload.overloadpacket.__name__)
    return str(node.get_kernel_name()).rpartition(".")[2]


def _bytes(output: Any) -> int:
    """Of one of several results of an operation; of what nobody reads, too."""
    try:
        count = 1
        for size in output.get_size():
            count *= int(size)
        return count * int(output.get_dtype().itemsize)
    except (AttributeError, NotImplementedError, TypeError):
        return 0


def by_part(found: Iterable[Launch]) -> dict[str, dict[str, int]]:
    """Launches and bytes of each part, those of the step in `"all"`."""
    total = {part: {"launches": 0, "bytes": 0} for part in (*PARTS, "all")}
    for launch in found:
        for part in (launch.part, "all"):
            total[part]["launches"] += 1
            total[part]["bytes"] += launch.moved
    return total


def fused(found: Iterable[Launch], *, within: str) -> int:
    """Generated kernels that do something of a part beside the part that they count as."""
    return sum(within in launch.parts and launch.part != within for launch in found)
