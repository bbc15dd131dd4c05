"""A method of merging, as far as finding regions is concerned: `methods.base.Method` is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Protocol

from torch import fx

from toma_fx.passes.find.region import Region

Readers = Callable[[Region], tuple[fx.Node, ...]]


class Method(Protocol):
    """What decides how far a proof has to go."""

    @property
    def readers(self) -> Readers:
        """The readers of a region's entry that see merged tokens; none leaves it out."""

    @property
    def returns(self) -> bool:
        """Whether tokens come back to full length; else they end inside the region."""

    @property
    def sees_all(self) -> Callable[[Region], bool]:
        """Whether keys and values of a region are of all tokens, where the user leaves it open."""


@dataclass(frozen=True)
class _Whole:
    readers: Readers = attrgetter("seeds")
    returns: bool = True
    sees_all: Callable[[Region], bool] = lambda region: False


WHOLE = _Whole()
"""Attention and linears all run on merged tokens, and the result returns."""
