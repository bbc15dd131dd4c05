"""Triton kernels that plan on CUDA: the implementation of `toma_fx::plan_` there.

A plan is three launches, whatever the phase; each kernel reads `phase` on the device and returns
at once where there is nothing to do. So no host ever waits for the device, and one CUDA graph
serves all phases:

    hidden ─ similarity ─▶ similarities ─┬─ greedy ──▶ destinations          (phase 2)
                                         └─ weights ─▶ merging, unmerging    (phases 1 and 2)

`toma_fx.reference` is the specification; the kernels pick exactly what it picks, given the same
similarities. Larger windows and `unmerge="pinv"` take `fallback`, which is slow but does not wait
either.

Nothing here imports Triton before a plan is made on CUDA: a machine without it loses nothing.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch


def available() -> bool:
    """Whether Triton is installed. It is not imported, and no device is looked for."""
    return importlib.util.find_spec("triton") is not None


def register(library: torch.library.Library) -> None:
    """Make the kernels the CUDA implementation of `plan_`; do nothing where Triton is missing.

    Args:
        library: the library that defines `toma_fx::plan_`, which must outlive its users.
    """
    if available():
        library.impl("plan_", _plan_cuda, "CUDA")


def _plan_cuda(*given: Any) -> None:
    from toma_fx.kernels.plan import plan_cuda  # imports Triton: at the first plan, not before

    plan_cuda(*given)
