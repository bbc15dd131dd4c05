"""Random weights where they will be used, in seconds: 24 GB do not pass through a CPU first.

The model is built without weights; each is then drawn on its device, in its type. With `shared`,
blocks of one kind read the same memory (as parameters of their own): Flux.1-dev then needs 1.2 GB
instead of 24. A block of it weighs 280 MB or more, five times the largest cache of a GPU, so that
every block is read from memory as it would be with weights of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn


def filled(
    build: Callable[[], nn.Module], device: torch.device, dtype: torch.dtype, shared: bool = False
) -> nn.Module:
    """A model in eval mode whose random weights depend on its architecture alone.

    Args:
        build: makes the model; its parameters never exist where it makes them.
        device: of the weights.
        dtype: likewise; buffers keep theirs.
        shared: parameters whose names differ by the number of their block alone, and whose
            shapes are equal, read the same memory.
    """
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model = build()
    chance = torch.Generator(device).manual_seed(0)
    drawn: dict[tuple[str, tuple[int, ...]], Tensor] = {}
    for name, empty in list(model.named_parameters()):
        block = re.sub(r"\.\d+\.", ".0.", name, count=1) if shared else name
        key = (block, tuple(empty.shape))
        if key not in drawn:
            weight = torch.empty(empty.shape, device=device, dtype=dtype)
            drawn[key] = _draw(weight, name, chance)
        owner, _, leaf = name.rpartition(".")
        parameter = nn.Parameter(drawn[key], requires_grad=empty.requires_grad)
        setattr(model.get_submodule(owner), leaf, parameter)
    return model.to(device).eval()


@torch.no_grad()
def _draw(weight: Tensor, name: str, chance: torch.Generator) -> Tensor:
    """Such that activations keep their size: no infinity may hide a difference."""
    if weight.ndim > 1:
        fan_in = weight[0].numel()
        return weight.normal_(std=fan_in**-0.5, generator=chance)
    return weight.zero_() if name.endswith("bias") else weight.fill_(1.0)
