"""The share of tokens that a step of `method="refresh"` computes: `p` of `q` classes in turn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from toma_fx.errors import ConfigError

CLASSES = 8
"""The largest `q`: a token then waits for seven steps, and is older than a prediction reaches."""

_NEAR = 0.005  # how far a ratio may be from the fraction it is meant for: 0.33, 0.667


@dataclass(frozen=True)
class Share:
    """`computed` of `classes` interleaved lattices are computed in a step."""

    computed: int
    classes: int

    def length(self, tokens: int) -> int:
        """Tokens of a class, the same for all: where they run out the last one is repeated."""
        return math.ceil(tokens / self.classes)

    def kept(self, tokens: int) -> int:
        """Tokens that are computed in a step."""
        return self.computed * self.length(tokens)


def share_of(ratio: float) -> Share:
    """The share that is left where `ratio` of the tokens are not computed.

    Raises:
        ConfigError: the ratio is near no fraction of `CLASSES` or fewer classes.
    """
    left = 1 - ratio
    fractions = {Fraction(p, q) for q in range(2, CLASSES + 1) for p in range(1, q)}
    near = min(fractions, key=lambda fraction: abs(float(fraction) - left))
    if abs(float(near) - left) > _NEAR:
        raise ConfigError(
            f"refresh computes p of q classes of tokens, q up to {CLASSES}: ratio must be a "
            f"fraction such as 1/2 or 3/4, not {ratio}; the nearest is {1 - near}"
        )
    return Share(near.numerator, near.denominator)
