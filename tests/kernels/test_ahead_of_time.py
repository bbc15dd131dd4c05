"""Every kernel compiles for every architecture, without a GPU."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SHARED_KIB = {70: 96, 75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
"""Compute capability to the most shared memory that a block may ask for."""

SPILLED = 64
"""Bytes a thread may keep on its stack: none by Triton 3.6, a few registers by later releases."""

DTYPES = ("fp32", "bf16", "fp16")
POINTERS = {
    "order": "*i64",
    "phase": "*i32",
    "slot": "*i64",
    "similarities": "*fp32",
    "destinations": "*i64",
    "batch_stride": "i64",
    "token_stride": "i64",
    "temperature": "fp32",
}

Case = tuple[str, Any, dict[str, Any]]


def similarity_cases() -> Iterator[Case]:
    from toma_fx.kernels.similarity import similarity_kernel, similarity_options

    more = {"channels": 1280, "channel_stride": 1}
    for dtype in DTYPES:
        yield dtype, similarity_kernel, {**similarity_options(64), **more, "ordered": True}
    yield "bf16", similarity_kernel, {**similarity_options(5), **more, "ordered": False}


def greedy_cases() -> Iterator[Case]:
    from toma_fx.kernels.greedy import fits_on_chip, greedy_options
    from toma_fx.kernels.greedy_streamed import greedy_streamed_kernel
    from toma_fx.kernels.greedy_tile import greedy_tile_kernel

    for size, count, items in ((5, 3, 1), (64, 32, 1), (64, 32, 2), (128, 64, 1), (256, 128, 2)):
        on_chip = fits_on_chip(size, items)
        kernel = greedy_tile_kernel if on_chip else greedy_streamed_kernel
        yield "bf16", kernel, {**greedy_options(size, count, items), "slotted": True}


def weights_cases() -> Iterator[Case]:
    from toma_fx.kernels.weights import weights_kernel, weights_options

    for dtype in DTYPES:
        yield dtype, weights_kernel, {**weights_options(64, 32), "slotted": True}
    for count in (1, 128, 256):
        yield "bf16", weights_kernel, {**weights_options(256, count), "slotted": True}


def compiled(case: Case, capability: int) -> Any:
    """Compile as a launch would: strides and pointers divisible by 16."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    dtype, kernel, options = case
    constants = {name: value for name, value in options.items() if not name.startswith("num_")}
    launch = {name: value for name, value in options.items() if name.startswith("num_")}
    streams = dict.fromkeys(("hidden", "merging", "unmerging"), f"*{dtype}")
    types = {**POINTERS, **streams, **dict.fromkeys(constants, "constexpr")}
    signature = {name: types.get(name, "i32") for name in kernel.arg_names}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, kind in enumerate(signature.values())
        if kind.startswith("*") or kind == "i64"
    }
    source = ASTSource(kernel, signature, constants, aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch)


def stack_bytes(cubin: bytes) -> int:
    """What a thread spills from registers to memory, as `cuobjdump` reports it."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", str(path)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return max(int(word.split(":")[1]) for word in output.split() if word.startswith("STACK:"))


def check_compiles(cases: Callable[[], Iterator[Case]], capability: int) -> None:
    for case in cases():
        kernel = compiled(case, capability)
        what = (case[1].__name__, case[0], case[2])
        assert f"sm_{capability}" in kernel.asm["ptx"], what
        assert len(kernel.asm["cubin"]) > 0, what
        assert kernel.metadata.shared <= SHARED_KIB[capability] * 1024, what
        assert stack_bytes(kernel.asm["cubin"]) <= SPILLED, what


@pytest.mark.parametrize("capability", SHARED_KIB)
@pytest.mark.parametrize("cases", [similarity_cases, greedy_cases, weights_cases])
def test_compiles_for(
    compiler: Callable[..., Any], cases: Callable[[], Iterator[Case]], capability: int
) -> None:
    compiler(check_compiles, cases, capability)
