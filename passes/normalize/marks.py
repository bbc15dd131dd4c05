"""Sizes that the caller marked dynamic, which become static all the same.

Why: a merged graph knows its number of tokens. Dynamo raises where a size that carries
`torch._dynamo.mark_dynamic` is specialised; another size would only compile anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch._guards import detect_fake_mode
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from toma_fx.errors import CannotRewrite

LIFTED = "sizes marked dynamic are static in a merged graph: each size compiles once"


def lift_marks(example_inputs: Sequence[Any]) -> bool:
    """Let sizes be static that the caller marked dynamic; whether there were any.

    Raises:
        CannotRewrite: a size is marked unbacked, so that nobody knows it.
    """
    for value in example_inputs:
        if isinstance(value, torch.Tensor | torch.SymInt) and free_unbacked_symbols(value):
            raise CannotRewrite(
                "a size is marked unbacked, and a merged graph knows its sizes: leave it unmarked"
            )
    mode = detect_fake_mode(example_inputs)
    tracked = getattr(getattr(mode, "shape_env", None), "tracked_fakes", None) or []
    found = False
    for fake in tracked:
        marks = getattr(fake.symbolic_context, "constraint_sizes", None) or []
        # What Dynamo marks by itself, having seen a size change, only warns.
        for place, mark in enumerate(marks):
            if mark is not None and not mark.warn_only:
                found, marks[place] = True, None
    return found
