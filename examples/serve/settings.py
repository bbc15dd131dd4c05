"""What a server paints with, and how much it takes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from toma_fx.config import TomaConfig
from toma_fx.demo.generators import NAMES
from toma_fx.diffusers import TokenMergingConfig
from toma_fx.errors import ConfigError

# Windows of all 256 tokens, and of fewer in smaller pictures, are what the generators have. The
# first blocks of Flux see noise, which merges with tokens of other places.
_SMALL: dict[str, Any] = {"regions": "all", "min_tokens": 16}
_USUAL: dict[str, dict[str, Any]] = {
    "emoji-sdxl": {**_SMALL, "cfg_pairs": True},
    "emoji-flux": {**_SMALL, "skip_blocks": 2},
}


T = TypeVar("T")


class Size(NamedTuple):
    """Of a picture, in pixels."""

    width: int
    height: int

    @classmethod
    def read(cls, text: str) -> Size:
        """`64x48` is 64 wide and 48 high.

        Raises:
            ConfigError: it is written otherwise.
        """
        width, cross, height = text.lower().partition("x")
        if not (cross and width.isdecimal() and height.isdecimal()):
            raise ConfigError(f"a size is WIDTHxHEIGHT in pixels, as 64x48, not {text!r}")
        return cls(int(width), int(height))

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True)
class Settings:
    """Of a server. All replicas have the same.

    Args:
        model: one of `toma_fx.demo.generators.NAMES`, or the folder of a diffusers pipeline.
        sizes: that are painted, each compiled at the start; others are refused.
        steps: denoising steps of a request that names none.
        most_steps: that a request may ask for.
        lanes: requests that a replica paints at once, a step each in turns. Each holds a set of
            plans; with a package, a whole copy of it.
        queued: requests that wait at the proxy; further ones are told to come back (HTTP 503).
        replicas: None is one for each GPU, or one without.
        package: a `.pt2` of `examples.serve.package`; None compiles at the start. It is native
            code: name only what you trust.
        merging: fields of `TokenMergingConfig` that differ from what is usual for the model;
            nothing for a package, which has its own.
        backend: that compiles the merged graph; `"eager"` starts at once and paints slowly.
        dtype: of the weights of a pipeline.
        threads: of a replica on a CPU.

    Raises:
        ConfigError: a value is not usable.
    """

    model: str = "emoji-sdxl"
    sizes: tuple[Size, ...] = (Size(64, 64),)
    steps: int = 12
    most_steps: int = 50
    lanes: int = 2
    queued: int = 8
    replicas: int | None = None
    package: Path | None = None
    merging: Mapping[str, Any] = field(default_factory=dict)
    backend: str = "inductor"
    dtype: str = "bfloat16"
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("steps", "most_steps", "lanes", "queued", "threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)!r}")
        if not self.sizes or len(set(self.sizes)) != len(self.sizes):
            raise ConfigError("sizes must name at least one size, each once")
        if self.steps > self.most_steps:
            raise ConfigError(f"steps={self.steps} is more than most_steps={self.most_steps}")
        if self.package is not None and self.merging:
            raise ConfigError("a package was merged when it was made: leave merging out")
        self.config()

    @property
    def is_small(self) -> bool:
        """Whether it is one of the project's generators."""
        return self.model in NAMES

    def alone(self) -> Settings:
        """For one request at a time."""
        return replace(self, lanes=1)

    def config(self) -> TokenMergingConfig:
        """How tokens merge.

        Raises:
            ConfigError: a field is unknown or out of range.
        """
        return self._made(TokenMergingConfig)

    def packaged(self) -> TomaConfig:
        """How tokens merge in a package, to which nobody tells the step.

        Raises:
            ConfigError: a field needs the step, or is unknown or out of range.
        """
        return self._made(TomaConfig)

    def _made(self, kind: type[T]) -> T:
        try:
            return kind(**{**_USUAL.get(self.model, {}), **self.merging})
        except TypeError as error:
            raise ConfigError(f"merging: {error}") from None
