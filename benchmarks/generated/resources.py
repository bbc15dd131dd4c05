"""Registers and memory on chip of the planning kernels, compiled ahead of time.

    python -m benchmarks.generated.resources --out benchmarks/results/kernels

Triton compiles for any architecture without a GPU, and `cuobjdump`, which it brings along, reads
what a kernel takes. Programs that fit on a multiprocessor at once follow from the registers and the
shared memory of an architecture, as its compute capability states them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import describe, in_words

REGISTERS = 65536
"""Of a multiprocessor, in all of these architectures."""

_KIB = 2**10


@dataclass(frozen=True)
class Architecture:
    """A compute capability: what a multiprocessor has, per NVIDIA's programming guide.

    Attributes:
        shared: bytes of shared memory of a multiprocessor.
        most: of them, what a block may ask for.
        warps: that may be resident.
        blocks: likewise.
    """

    shared: int
    most: int
    warps: int
    blocks: int


ARCHITECTURES = {
    70: Architecture(96 * _KIB, 96 * _KIB, 64, 32),
    75: Architecture(64 * _KIB, 64 * _KIB, 32, 16),
    80: Architecture(164 * _KIB, 163 * _KIB, 64, 32),
    86: Architecture(100 * _KIB, 99 * _KIB, 48, 16),
    89: Architecture(100 * _KIB, 99 * _KIB, 48, 24),
    90: Architecture(228 * _KIB, 227 * _KIB, 64, 32),
    100: Architecture(228 * _KIB, 227 * _KIB, 64, 32),
    120: Architecture(100 * _KIB, 99 * _KIB, 48, 24),
}
_POINTERS = {
    "order": "*i64",
    "phase": "*i32",
    "similarities": "*fp32",
    "destinations": "*i64",
    "batch_stride": "i64",
    "token_stride": "i64",
    "temperature": "fp32",
    "slot": "*i64",
}


@dataclass(frozen=True)
class Case:
    """A kernel and the sizes it is compiled for.

    Attributes:
        what: in words.
        kernel: of Triton.
        dtype: of hidden states and plans.
        options: sizes known when it is compiled, and warps.
    """

    what: str
    kernel: Any
    dtype: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Use:
    """What a compiled kernel takes."""

    kernel: str
    what: str
    dtype: str
    capability: int
    warps: int
    registers: int
    stack: int
    shared: int
    programs: int


def cases() -> Iterator[Case]:
    """Plans as SDXL and Flux make them: windows of 64, pairs of guidance, and large windows."""
    from toma_fx.kernels.greedy import fits_on_chip, greedy_options
    from toma_fx.kernels.greedy_streamed import greedy_streamed_kernel
    from toma_fx.kernels.greedy_tile import greedy_tile_kernel
    from toma_fx.kernels.similarity import similarity_kernel, similarity_options
    from toma_fx.kernels.weights import weights_kernel, weights_options

    for channels in (640, 3072):
        more = {"channels": channels, "channel_stride": 1, "ordered": True}
        for dtype in ("bf16", "fp32"):
            what = f"64 tokens, {channels} channels"
            yield Case(what, similarity_kernel, dtype, {**similarity_options(64), **more})
    for size, count, items in (
        (64, 32, 1),
        (64, 32, 2),
        (128, 64, 1),
        (256, 128, 1),
        (256, 128, 2),
    ):
        on_chip = fits_on_chip(size, items)
        kernel = greedy_tile_kernel if on_chip else greedy_streamed_kernel
        pair = ", a pair" if items == 2 else ""
        options = {**greedy_options(size, count, items), "slotted": True}
        yield Case(f"{count} of {size}{pair}", kernel, "fp32", options)
    for size, count in ((64, 16), (64, 32), (64, 48), (256, 128)):
        options = {**weights_options(size, count), "slotted": True}
        yield Case(f"{count} of {size}", weights_kernel, "bf16", options)


def compiled(case: Case, capability: int) -> Any:
    """Compile as a launch would: strides and pointers divisible by 16."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {n: v for n, v in case.options.items() if not n.startswith("num_")}
    launch = {n: v for n, v in case.options.items() if n.startswith("num_")}
    streams = dict.fromkeys(("hidden", "merging", "unmerging"), f"*{case.dtype}")
    types = {**_POINTERS, **streams, **dict.fromkeys(constants, "constexpr")}
    signature = {name: types.get(name, "i32") for name in case.kernel.arg_names}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, kind in enumerate(signature.values())
        if kind.startswith("*") or kind == "i64"
    }
    source = ASTSource(case.kernel, signature, constants, aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch)


def resources(cubin: bytes) -> dict[str, int]:
    """What `cuobjdump` reports of a kernel: registers a thread, bytes of its stack."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", str(path)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    words = [word.split(":") for word in output.split() if word.count(":") == 1]
    found = {name: int(value) for name, value in words if value.isdigit()}
    return {"registers": found["REG"], "stack": found["STACK"]}


def programs(architecture: Architecture, warps: int, registers: int, shared: int) -> int:
    """How many programs a multiprocessor holds at once.

    Registers are given out to warps in units of 256, and each program takes a KiB of shared memory
    for the system where there is as much of it as from 8.0 on.
    """
    per_warp = -(-registers * 32 // 256) * 256
    limits = [architecture.blocks, architecture.warps // warps, REGISTERS // (per_warp * warps)]
    system = _KIB if architecture.shared > architecture.most else 0
    if shared + system:
        limits.append(architecture.shared // (shared + system))
    return min(limits)


def use(case: Case, capability: int) -> Use:
    kernel = compiled(case, capability)
    found = resources(kernel.asm["cubin"])
    warps, shared = int(kernel.metadata.num_warps), int(kernel.metadata.shared)
    fit = programs(ARCHITECTURES[capability], warps, found["registers"], shared)
    name = case.kernel.__name__
    return Use(name, case.what, case.dtype, capability, warps, **found, shared=shared, programs=fit)


def markdown(found: dict[str, Any]) -> str:
    """Registers a thread / KiB of shared memory a program / programs a multiprocessor."""
    names = [f"{capability / 10:.1f}" for capability in ARCHITECTURES]
    lines = ["# What the planning kernels take", "", in_words(found), "", *_NOTES, ""]
    lines += ["| kernel | for | type | warps | " + " | ".join(names) + " |"]
    lines += ["|" + "---|" * (4 + len(names))]
    rows: dict[tuple[Any, ...], dict[int, Use]] = {}
    for entry in found["rows"]:
        row = Use(**entry)
        rows.setdefault((row.kernel, row.what, row.dtype, row.warps), {})[row.capability] = row
    for labels, by_capability in rows.items():
        cells = [_cell(by_capability.get(capability)) for capability in ARCHITECTURES]
        lines.append("| " + " | ".join([*map(str, labels), *cells]) + " |")
    return "\n".join(lines) + "\n"


_NOTES = (
    "By compute capability: registers a thread, KiB of shared memory a program, and programs that",
    "a multiprocessor holds at once; `+n` where a thread keeps n bytes on its stack.",
)


def _cell(row: Use | None) -> str:
    if row is None:
        return ""
    spilled = f" +{row.stack}" if row.stack else ""
    return f"{row.registers}{spilled}, {row.shared / _KIB:.1f}, {row.programs}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help="path without suffix")
    given = parser.parse_args()
    rows = [asdict(use(case, capability)) for case in cases() for capability in ARCHITECTURES]
    found = {**describe(), "rows": rows}
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
        given.out.with_suffix(".md").write_text(markdown(found))
    print(markdown(found))


if __name__ == "__main__":
    main()
