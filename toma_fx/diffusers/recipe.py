"""What `apply` was asked to do, checked before anything is touched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from toma_fx.compiler import Compiler, choose
from toma_fx.config import TomaConfig, closest
from toma_fx.diffusers.config import TokenMergingConfig
from toma_fx.errors import ConfigError
from toma_fx.passes.methods import METHODS

_OPTIONS = ("fullgraph", "dynamic", "mode", "options", "recompile_limit", "regional")
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
        rest_every: steps from one that rests to the next; None where none does.
        dense_steps: the steps that compute all tokens and remember them; -1 is the last.
        regional: compiled are the blocks that repeat, each class once, instead of the whole.
    """

    config: TomaConfig
    compiler: Compiler
    how: Mapping[str, Any]
    limit: int
    merge_steps: tuple[float, float] = field(compare=False)
    rest_every: int | None = None
    dense_steps: tuple[int, ...] = field(default=(), compare=False)
    regional: bool = False

    @property
    def needs_steps(self) -> str:
        """An option that only whoever knows the step can follow; nothing where there is none."""
        asked = {
            "merge_steps": self.merge_steps != (0.0, 1.0),
            "rest_every": self.rest_every is not None,
            "dense_steps": bool(self.dense_steps),
        }
        return next((name for name, given in asked.items() if given), "")

    @property
    def remembers(self) -> bool:
        """Whether tokens have a memory, which graphs of several paces may share."""
        return METHODS[self.config.method].remembers

    def rising(self) -> Recipe:
        """The same for a model whose timestep rises within a picture."""
        guard = (*self.config.guard, "rises")
        return replace(self, config=changed(self.config, guard=guard))

    @property
    def rests_at_all(self) -> bool:
        """Whether any step should compute nothing."""
        return self.rest_every is not None

    def is_dense(self, step: int, steps: int) -> bool:
        """Whether one of so many steps should compute all tokens."""
        return step in self.dense_steps or step - steps in self.dense_steps

    def rests(self, step: int) -> bool:
        """Whether a step should compute nothing, if there is something to predict from."""
        return self.rest_every is not None and step % self.rest_every == self.rest_every - 1


def changed(config: TomaConfig, **changes: Any) -> TomaConfig:
    """A configuration with other values of some fields."""
    fields = {name: getattr(config, name) for name in TomaConfig.field_names()}
    return TomaConfig(**{**fields, **changes})


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
    for name in ("fullgraph", "dynamic", "regional"):
        if given.get(name) not in (None, True, False):
            raise ConfigError(f"{name} must be True or False, not {given[name]!r}")
    options = given.get("options") or {}
    if not isinstance(options, Mapping):
        raise ConfigError(f"options must be a dictionary, not {options!r}")
    fields = {name: getattr(config, name) for name in TomaConfig.field_names()}
    merging, compiler = choose(given.get("mode"), {**fields, **options})
    hosted = config if isinstance(config, TokenMergingConfig) else TokenMergingConfig()
    _refuse_without_memory(merging, hosted)
    return Recipe(
        merging,
        compiler,
        {name: given[name] for name in ("fullgraph", "dynamic") if given.get(name) is not None},
        _limit(given.get("recompile_limit", LIMIT)),
        hosted.merge_steps,
        hosted.rest_every,
        hosted.dense_steps,
        bool(given.get("regional")),
    )


def _refuse_without_memory(merging: TomaConfig, hosted: TokenMergingConfig) -> None:
    """A step can only rest, or prepare the next one, where something is remembered."""
    asked = {"rest_every": hosted.rest_every is not None, "dense_steps": bool(hosted.dense_steps)}
    for name, given in asked.items():
        if given and not METHODS[merging.method].remembers:
            known = ", ".join(f'"{key}"' for key, method in METHODS.items() if method.remembers)
            raise ConfigError(
                f'{name} needs a method that remembers ({known}), and method="{merging.method}" '
                "does not: leave it out, or see merge_steps for steps at full length"
            )
        if given and merging.autotune:
            raise ConfigError(
                f"{name} needs graphs that agree in their regions, and autotune measures each: "
                "leave one of them out"
            )


def _limit(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"recompile_limit must be a whole number of at least 1, not {value!r}")
    return value
