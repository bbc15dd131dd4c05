"""What a graph computes of its regions' tokens, for methods that remember.

One model may run at several paces, each a graph of its own, which share their memory: whoever knows
the step chooses between them (`toma_fx.diffusers`). The memory is written in the same order under
the same names, whatever the pace.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Computes(Enum):
    """Whose values a call computes."""

    SHARE = "a share"
    ALL = "all"
    NONE = "none"


@dataclass(frozen=True)
class Pace:
    """How one graph of a model runs.

    Attributes:
        computes: tokens of its regions.
        rests: whether a graph that computes none shares its memory. That one needs to know what
            text takes from the picture as well, so that the others must remember it.
    """

    computes: Computes = Computes.SHARE
    rests: bool = False

    def __post_init__(self) -> None:
        assert self.rests or self.computes is not Computes.NONE

    @property
    def remark(self) -> str:
        """What a report should say of it; nothing where it is the usual one."""
        return _REMARKS[self.computes]


_REMARKS = {
    Computes.SHARE: "",
    Computes.ALL: "dense: every token is computed, and remembered",
    Computes.NONE: "resting: no token is computed, every one is predicted",
}

USUAL = Pace()
"""A share of the tokens at every step."""
