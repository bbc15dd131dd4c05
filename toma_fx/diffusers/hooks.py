"""The hooks that diffusers puts around a block: caches, offloading, casting.

They replace a block's `forward` and decide on the host whether to call what it was. Inside of
compiled code they break its graph, and some keep Dynamo out of all that they call. So they stay on
the host, and what the innermost of them calls is compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class Inner:
    """Stands where the hooks of a block look for its forward.

    Args:
        plain: the block's own forward.
        runs: the same, compiled; None where nothing compiled runs now.
    """

    def __init__(
        self, plain: Callable[..., Any], runs: Callable[[], Callable[..., Any] | None]
    ) -> None:
        self.plain = plain
        self._runs = runs

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        runs = None if torch.compiler.is_compiling() else self._runs()
        return (runs or self.plain)(*args, **kwargs)


def put_inside(block: nn.Module, runs: Callable[[], Callable[..., Any] | None]) -> bool:
    """Have a block's hooks call an `Inner`; whether it has any that can."""
    found = _innermost(block)
    if found is None:
        return False
    reference, name = found
    plain = getattr(reference, name)
    if isinstance(plain, Inner):
        return True
    if getattr(plain, "__func__", None) is not type(block).forward:
        return False  # somebody else's
    setattr(reference, name, Inner(plain, runs))
    return True


def take_out(block: nn.Module) -> None:
    """Undo `put_inside`; nothing where it was not done."""
    found = _innermost(block)
    if found is not None and isinstance(inner := getattr(*found), Inner):
        setattr(*found, inner.plain)
    if isinstance(block.__dict__.get("forward"), Inner):  # the hooks were removed since
        del block.forward


def _innermost(block: nn.Module) -> tuple[Any, str] | None:
    """Where the first hook of a block keeps what it replaced."""
    references = getattr(getattr(block, "_diffusers_hook", None), "_fn_refs", None)
    if not references:
        return None
    replaced = getattr(references[0], "original_forward", None) is not None
    return references[0], "original_forward" if replaced else "forward"
