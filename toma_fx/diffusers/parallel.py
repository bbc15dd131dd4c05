"""Denoisers whose tokens are sharded over several devices (`enable_parallelism`).

The sharding is diffusers' own: hooks cut the inputs and gather the output, and each attention
exchanges heads for tokens. A hook that was never called looks up its module's signature, which
Dynamo cannot follow, so that the graph would break in front of the first block.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn


def prepare_hooks(model: nn.Module) -> None:
    """Let each hook know its module's signature, as its first call would."""
    for module in model.modules():
        registry: Any = getattr(module, "_diffusers_hook", None)
        for hook in getattr(registry, "hooks", {}).values():
            known = getattr(hook, "module_forward_metadata", None)
            if known is not None and known.cached_parameter_indices is None:
                names = list(inspect.signature(known._cls.forward).parameters)[1:]
                known.cached_parameter_indices = {name: i for i, name in enumerate(names)}
