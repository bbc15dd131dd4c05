"""Sizes that the caller marked dynamic, which become static all the same.

Why: a merged graph knows its number of tokens. Dynamo raises where a size that carries
`torch._dynamo.mark_dynamic` is specialised; another size would only compile anew. The number of
items may stay a symbol (`batch`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sympy
import torch
from torch._guards import detect_fake_mode
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from toma_fx.errors import CannotRewrite

LIFTED = "sizes marked dynamic are static in a merged graph: each size compiles once"


def refuse_unbacked(example_inputs: Sequence[Any]) -> None:
    """Refuse sizes that nobody knows.

    Raises:
        CannotRewrite: a size is marked unbacked.
    """
    for value in example_inputs:
        if isinstance(value, torch.Tensor | torch.SymInt) and free_unbacked_symbols(value):
            raise CannotRewrite(
                "a size is marked unbacked, and a merged graph knows its sizes: leave it unmarked"
            )


def lift_marks(example_inputs: Sequence[Any], but: sympy.Symbol | None = None) -> bool:
    """Let sizes be static that the caller marked dynamic; whether there were any.

    Args:
        example_inputs: of a graph.
        but: a symbol that may stay one; its marks are left alone.
    """
    mode = detect_fake_mode(example_inputs)
    tracked = getattr(getattr(mode, "shape_env", None), "tracked_fakes", None) or []
    found = False
    for fake in tracked:
        marks = getattr(fake.symbolic_context, "constraint_sizes", None) or []
        # What Dynamo marks by itself, having seen a size change, only warns.
        for place, mark in enumerate(marks):
            if mark is None or mark.warn_only or _is(fake.fake, place, but):
                continue
            found, marks[place] = True, None
    return found


def _is(fake: Any, place: int, symbol: sympy.Symbol | None) -> bool:
    size = fake.shape[place] if isinstance(fake, torch.Tensor) else fake
    return isinstance(size, torch.SymInt) and size.node.expr == symbol
