"""The compiler behind the passes, and its options, checked before anything is traced."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch._inductor.config
from torch import fx
from torch._dynamo.backends.registry import list_backends, lookup_backend
from torch._inductor import list_mode_options

from toma_fx.config import TomaConfig, closest, split_options
from toma_fx.devices import find_profile
from toma_fx.errors import ConfigError


@dataclass(frozen=True)
class Compiler:
    """What compiles a graph once it is rewritten.

    Args:
        inner: a registered Dynamo backend by name, or one itself.
        mode: Inductor's.
        options: Inductor's.

    Raises:
        ConfigError: no backend or no mode has that name, or Inductor's options are given to
            another backend.
    """

    inner: str | Callable[..., Any] = "inductor"
    mode: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not callable(self.inner) and self.inner not in list_backends(exclude_tags=None):
            raise _unknown("inner_backend", self.inner, list_backends())
        if self.inner == "toma":
            raise ConfigError("inner_backend compiles what is merged: 'toma' would merge it again")
        if self.mode is not None and self.mode not in list_mode_options():
            raise _unknown("mode", self.mode, list(list_mode_options()))
        if self.inner != "inductor" and (self.mode or self.options):
            given = ", ".join(filter(None, (self.mode and "mode", *self.options)))
            raise ConfigError(f"{given} belong to Inductor, not to inner_backend={self.inner!r}")

    def __call__(self, gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        """Compile a graph for inputs, real or fake."""
        if self.inner != "inductor":
            compiled: Callable[..., Any] = lookup_backend(self.inner)(gm, list(inputs))
            return compiled
        from torch._inductor.compile_fx import compile_fx

        patches = {**(list_mode_options(self.mode) if self.mode else {}), **self.options}
        return compile_fx(gm, list(inputs), config_patches=patches or None)


def choose(mode: str | None, options: Mapping[str, Any] | None) -> tuple[TomaConfig, Compiler]:
    """What `torch.compile(mode=..., options=...)` chose: how to merge, and what compiles.

    Raises:
        ConfigError: an option is unknown or out of range.
    """
    config, others = split_options(options, ("inner_backend", *inductor_options()))
    if config.device not in (None, "measure"):
        find_profile(config.device, torch.device("cpu"))
    inner = others.pop("inner_backend", "inductor")
    return config, Compiler(inner, mode, others)


def inductor_options() -> list[str]:
    """Names of the options that Inductor knows."""
    known = torch._inductor.config.get_config_copy() if _copyable() else {}
    return [name.replace("-", "_") for name in known]


def _copyable() -> bool:
    return hasattr(torch._inductor.config, "get_config_copy")


def _unknown(what: str, name: object, names: list[str]) -> ConfigError:
    hint = closest(name, names) if isinstance(name, str) else ""
    return ConfigError(f"{what} must be one of {', '.join(sorted(names))}, not {name!r}{hint}")
