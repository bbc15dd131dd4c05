"""What a user of a pipeline may choose beside `TomaConfig`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from toma_fx.config import TomaConfig, plain_number
from toma_fx.errors import ConfigError


@dataclass(frozen=True)
class TokenMergingConfig(TomaConfig):
    """`TomaConfig`, and what each step of a generation does.

    `cfg_pairs=None` means here: wherever the pipeline runs both halves of its guidance in one
    batch. Whether it does is read at each call, so that one pipeline serves both.

    Args:
        merge_steps: `(start, end)` as fractions of the scheduler's timesteps; step `i` of `n` is
            merged where `start <= i / n < end`, the others run at full length. A later start
            keeps the composition nearer to the plain picture, an earlier end the detail; either
            costs speed and one more compile, of the plain graph.
        rest_every: every so many-th step rests, 2 or more: for `method="refresh"`, a second graph
            in which each region is predicted from what its tokens were, and its linears and
            attention are gone. A smaller value is faster and further from the plain picture; 2
            leaves a quarter of the regions' cost at ratio 0.5. Steps count from 0, and the first
            to rest is `rest_every - 1`; a step for which nothing is remembered does not rest. With
            text that sees the picture, that is remembered too, and of each token what its
            neighbours said last: one value more. None never rests.
        dense_steps: steps that compute every token, counted from 0, or from -1 at the end, for
            `method="refresh"`: the plain graph, which remembers as well, so that the step behind
            it begins with all values known. `(-1,)` is nearer to the plain picture, and
            `(0, -1)` nearer still; each costs a full step, and all of them one more compile.

    Raises:
        ConfigError: a value is out of its range.
    """

    merge_steps: tuple[float, float] = (0.0, 1.0)
    rest_every: int | None = None
    dense_steps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "merge_steps", _fractions(self.merge_steps))
        object.__setattr__(self, "dense_steps", _steps(self.dense_steps))
        if self.rest_every is not None and not _is_whole(self.rest_every, least=2):
            raise ConfigError(
                f"rest_every must be None or a whole number of at least 2, not {self.rest_every!r}"
            )

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


def _steps(value: object) -> tuple[int, ...]:
    given = value if isinstance(value, Iterable) and not isinstance(value, str) else (value,)
    steps = tuple(plain_number(number) for number in given)
    if not all(_is_whole(step) for step in steps):
        raise ConfigError(
            "dense_steps must be whole numbers, of steps from 0 on or from -1 at the end, not "
            f"{value!r}"
        )
    return tuple(sorted(set(steps)))


def _is_whole(value: object, least: int | None = None) -> bool:
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    return least is None or value >= least
