"""What `apply` was asked to do, checked before anything is touched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from toma_fx.compiler import Compiler, choose
from toma_fx.config import TomaConfig, closest
from toma_fx.diffusers.config import TokenMergingConfig
from toma_fx.errors import ConfigError

_OPTIONS = ("fullgraph", "dynamic", "mode", "options", "recompile_limit")
LIMIT = 64
"""Sizes that one graph may have, and graphs of one size."""


@dataclass(frozen=True)
class Recipe:
    """How a denoiser is compiled: what two pipelines must agree on to share their graphs.

    Attributes:
        config: how it is merged.
        compiler: what compiles the merged graph.
        how: arguments of `torch.compile`.
        limit: sizes that one graph may have, and graphs of one size.
        merge_steps: of the pipeline's steps; pipelines may differ in it.
    """

    config: TomaConfig
    compiler: Compiler
    how: Mapping[str, Any]
    limit: int
    merge_steps: tuple[float, float] = field(compare=False)

    @property
    def merges_always(self) -> bool:
        return self.merge_steps == (0.0, 1.0)


def recipe_of(config: TomaConfig | None, given: Mapping[str, Any]) -> Recipe:
    """The recipe for arguments of `apply`.

    Raises:
        ConfigError: an option is unknown or out of range.
    """
    config = TokenMergingConfig() if config is None else config
    if not isinstance(config, TomaConfig):
        raise ConfigError(f"config must be a TokenMergingConfig or a TomaConfig, not {config!r}")
    for name in given:
        if name not in _OPTIONS:
            raise ConfigError(
                f"unknown option {name!r}{closest(name, _OPTIONS)}; fields of TokenMergingConfig "
                "go into config, options of the compiler into options"
            )
    for name in ("fullgraph", "dynamic"):
        if given.get(name) not in (None, True, False):
            raise ConfigError(f"{name} must be True or False, not {given[name]!r}")
    options = given.get("options") or {}
    if not isinstance(options, Mapping):
        raise ConfigError(f"options must be a dictionary, not {options!r}")
    fields = {name: getattr(config, name) for name in TomaConfig.field_names()}
    merging, compiler = choose(given.get("mode"), {**fields, **options})
    return Recipe(
        merging,
        compiler,
        {name: given[name] for name in ("fullgraph", "dynamic") if given.get(name) is not None},
        _limit(given.get("recompile_limit", LIMIT)),
        config.merge_steps if isinstance(config, TokenMergingConfig) else (0.0, 1.0),
    )


def _limit(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"recompile_limit must be a whole number of at least 1, not {value!r}")
    return value
