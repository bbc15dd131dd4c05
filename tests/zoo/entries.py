"""The list of models, and what their configurations are made with."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Made = tuple[nn.Module, dict[str, Any]]

HEADS, HEAD = 2, 16
"""Heads of a small model, and their width; rotary axes share the width as 4, 6 and 6."""
WIDTH = HEADS * HEAD
HEADED = {"num_attention_heads": HEADS, "attention_head_dim": HEAD}
AXES = (4, 6, 6)
ROWS, COLUMNS, FRAMES = 8, 12, 3
"""Sides of the grid of tokens. Windows of 4 divide them, so that tiles are what is used."""
TOKENS = ROWS * COLUMNS
WORDS = 10
"""Text tokens."""


@dataclass(frozen=True)
class Entry:
    """One row of the table.

    Attributes:
        name: of the class; behind a slash, of a way to call it that a pipeline uses as well.
        module: in which `diffusers.models` defines it.
        make: the model and the arguments of a call.
        options: fields of `TomaConfig` that a user of this model has to give.
    """

    name: str
    module: str
    make: Callable[[type[nn.Module]], Made]
    options: dict[str, Any]

    def build(self) -> Made:
        """The model, with random weights, and inputs: the same at every call."""
        torch.manual_seed(0)
        defined = importlib.import_module(f"diffusers.models.{self.module}")
        model, inputs = self.make(getattr(defined, self.name.split("/")[0]))
        return alive(model).eval(), inputs


_ENTRIES: dict[str, Entry] = {}


def entries() -> dict[str, Entry]:
    """All models, by name: each module of them registers its own."""
    for name in ("others", "packed", "pictures", "videos"):
        importlib.import_module(f"tests.zoo.{name}")
    return _ENTRIES


def entry(module: str, name: str, **options: Any) -> Callable[[Any], Any]:
    """Register a function that makes a model and its inputs."""

    def register(make: Callable[[type[nn.Module]], Made]) -> Callable[[type[nn.Module]], Made]:
        assert name not in _ENTRIES, name
        _ENTRIES[name] = Entry(name, f"transformers.{module}", make, options)
        return make

    return register


def alive(model: nn.Module) -> nn.Module:
    """What a class initialises to zero (gates, last layers) hides everything behind it."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not bool(parameter.isfinite().all()) or not bool(parameter.any()):
                parameter.normal_(std=0.1)
    return model


def noise(*sizes: int) -> Tensor:
    return torch.randn(*sizes)


def positions(rows: int = ROWS, columns: int = COLUMNS, axes: int = 3, first: int = 0) -> Tensor:
    """`[rows · columns, axes]`: row and column last, or third from last where there are four."""
    ids = torch.zeros(rows, columns, axes)
    ids[..., 0] = first
    ids[..., 1] += torch.arange(rows)[:, None]
    ids[..., 2] += torch.arange(columns)
    return ids.reshape(-1, axes)


def rotary(tokens: int, width: int = HEAD) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[tokens, width]`, as pipelines hand them over."""
    angles = torch.rand(tokens, width) * 6
    return angles.cos(), angles.sin()
