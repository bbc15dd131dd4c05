"""A request's body as an order, or a refusal that says what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from examples.serve.settings import Settings, Size
from toma_fx.errors import ConfigError, TomaError

_FIELDS = ("prompt", "seed", "size", "steps")
_LONGEST = 2000  # characters of a prompt
_SEEDS = 2**63


class RefusedError(TomaError, ValueError):
    """A request that will never be painted as it is; the message says what to change.

    Attributes:
        status: of HTTP.
    """

    status = 422


class MalformedError(RefusedError):
    """The body is no JSON object."""

    status = 400


class UnknownSizeError(RefusedError):
    """A size that the server was not started with: to compile it would hold up all others."""


@dataclass(frozen=True)
class Order:
    """One picture.

    Attributes:
        prompt: in words.
        seed: of the noise; the same order is the same picture.
        size: one of the server's.
        steps: denoising steps.
    """

    prompt: str
    seed: int
    size: Size
    steps: int

    @classmethod
    def read(cls, body: bytes | str, settings: Settings) -> Order:
        """An order from JSON: `prompt`, and where wanted `seed` (0), `size` and `steps`.

        Raises:
            RefusedError: something is missing, unknown or out of range.
        """
        given = _object(body)
        unknown = sorted(given.keys() - set(_FIELDS))
        if unknown:
            raise RefusedError(f"unknown: {', '.join(unknown)}; known are {', '.join(_FIELDS)}")
        prompt = given.get("prompt")
        if not isinstance(prompt, str) or not 0 < len(prompt) <= _LONGEST:
            raise RefusedError(f"prompt must be text of 1 to {_LONGEST} characters")
        seed = _whole("seed", given.get("seed", 0), 0, _SEEDS - 1)
        steps = _whole("steps", given.get("steps", settings.steps), 1, settings.most_steps)
        return cls(prompt, seed, _size(given.get("size"), settings), steps)

    def write(self) -> bytes:
        """JSON that `read` reads."""
        return json.dumps(
            {"prompt": self.prompt, "seed": self.seed, "size": str(self.size), "steps": self.steps}
        ).encode()


def _object(body: bytes | str) -> Mapping[str, Any]:
    try:
        given = json.loads(body)
    except ValueError as error:  # also of bytes that are no text
        raise MalformedError(f"the body is no JSON: {error}") from None
    if not isinstance(given, dict):
        raise MalformedError('the body must be an object, as {"prompt": "red apple"}')
    return given


def _whole(name: str, value: object, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise RefusedError(f"{name} must be a whole number from {least} to {most}, not {value!r}")
    return value


def _size(value: object, settings: Settings) -> Size:
    if value is None:
        return settings.sizes[0]
    try:
        size = Size.read(value if isinstance(value, str) else repr(value))
    except ConfigError as error:
        raise RefusedError(str(error)) from None
    if size not in settings.sizes:
        known = ", ".join(map(str, settings.sizes))
        raise UnknownSizeError(f"no pictures of {size} here; sizes of this server: {known}")
    return size
