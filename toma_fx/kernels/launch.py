"""How kernels are launched so that compilers see them."""

from __future__ import annotations

from typing import Any

import torch
from triton.runtime.jit import JITFunction


def wrap_triton(kernel: Any) -> Any:
    """`torch.library.wrap_triton`, also for kernels under Triton's interpreter.

    Torch 2.11 refuses those, and nothing can trace them in any version. The name is kept: torch
    looks for calls of it in the source of a `triton_op`, to know which kernels the op contains.
    """
    return torch.library.wrap_triton(kernel) if isinstance(kernel, JITFunction) else kernel
