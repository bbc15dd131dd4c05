"""What one exit remembers: the last values of its tokens, those before them, and their trend."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, fx

from toma_fx import recall
from toma_fx.config import FIT, TomaConfig
from toma_fx.passes.graph.emit import Emitter
from toma_fx.passes.methods.slots import Moment, SlotBuffer, SlotTensors

_FEW = 3  # slots: of more, all of a memory is too much to read and write
_ORDER = ("last", "before", "trend", "heard")
"""As the functions of `recall` take and return them."""


class Kept:
    """The last values of one exit, or of one piece of text, and those before them.

    Where α is fitted, there is one for each item of the batch; where neighbours correct tokens and
    some steps rest, what they said last.
    """

    def __init__(
        self,
        emit: Emitter,
        name: str,
        moment: Moment,
        sizes: tuple[int, ...],
        like: Tensor,
        config: TomaConfig,
        hears: bool = False,
    ) -> None:
        kind = SlotTensors if moment.slots <= _FEW else SlotBuffer
        self._emit = emit
        fits = config.history == 2 and config.extrapolate == FIT
        there = {"last": True, "before": config.history == 2, "trend": fits, "heard": hears}
        self._buffers = {
            what: kind(emit, f"{name}_{what}", moment, *_kind(what, sizes, like))
            for what in _ORDER
            if there[what]
        }

    def read(self) -> list[fx.Node | None]:
        """Last values, those before, α, what was heard; None for what is not kept."""
        return [self._buffers[w].read() if w in self._buffers else None for w in _ORDER]

    def write(self, values: Iterable[fx.Node]) -> None:
        """Those that are kept, in the same order."""
        for buffer, value in zip(self._buffers.values(), values, strict=True):
            buffer.write(value)

    def learn(self, computed: fx.Node, carried: fx.Node, fresh: fx.Node) -> None:
        """Keep values all of which were computed."""
        self.write(self._emit.inline(recall.learn, computed, *self.read(), carried, fresh))


def _kind(
    what: str, sizes: tuple[int, ...], like: Tensor
) -> tuple[tuple[int, ...], torch.dtype, torch.device]:
    if what == "trend":
        return sizes[:1], torch.float32, like.device
    return sizes, like.dtype, like.device
