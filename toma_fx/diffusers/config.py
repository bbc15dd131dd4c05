"""What a user of a pipeline may choose beside `TomaConfig`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from toma_fx.config import TomaConfig, plain_number
from toma_fx.errors import ConfigError


@dataclass(frozen=True)
class TokenMergingConfig(TomaConfig):
    """`TomaConfig`, and the part of a generation that is merged.

    `cfg_pairs=None` means here: wherever the pipeline runs both halves of its guidance in one
    batch. Whether it does is read at each call, so that one pipeline serves both.

    Args:
        merge_steps: `(start, end)` as fractions of the scheduler's timesteps; step `i` of `n` is
            merged where `start <= i / n < end`, the others run at full length. A later start
            keeps the composition nearer to the plain picture, an earlier end the detail; either
            costs speed and one more compile, of the plain graph.

    Raises:
        ConfigError: a value is out of its range.
    """

    merge_steps: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "merge_steps", _fractions(self.merge_steps))

    @property
    def merges_always(self) -> bool:
        """Whether no step runs at full length."""
        return self.merge_steps == (0.0, 1.0)


def _fractions(value: object) -> tuple[float, float]:
    given = value if isinstance(value, Iterable) and not isinstance(value, str) else ()
    pair = tuple(plain_number(number) for number in given)
    numbers = all(isinstance(n, int | float) and not isinstance(n, bool) for n in pair)
    if len(pair) != 2 or not numbers or not 0 <= pair[0] < pair[1] <= 1:
        raise ConfigError(
            "merge_steps must be (start, end), fractions of the steps with "
            f"0 <= start < end <= 1, not {value!r}"
        )
    return float(pair[0]), float(pair[1])
