"""What one exit remembers: the last values of its tokens, those before them, and their trend."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, fx

from toma_fx import recall
from toma_fx.config import FIT, TomaConfig
from toma_fx.passes.graph.emit import Emitter
from toma_fx.passes.methods.slots import Moment, SlotBuffer, SlotTensors

_VALUES = ("last", "before")
_FEW = 3  # slots: of more, all of a memory is too much to read and write


class Kept:
    """The last values of one exit, or of one piece of text, and those before them.

    Where α is fitted, there is one for each item of the batch.
    """

    def __init__(
        self,
        emit: Emitter,
        name: str,
        moment: Moment,
        sizes: tuple[int, ...],
        like: Tensor,
        config: TomaConfig,
    ) -> None:
        kind = SlotTensors if moment.slots <= _FEW else SlotBuffer
        self._emit = emit
        values = (moment, sizes, like.dtype, like.device)
        self._buffers = [kind(emit, f"{name}_{w}", *values) for w in _VALUES[: config.history]]
        if config.history == 2 and config.extrapolate == FIT:
            number = (moment, sizes[:1], torch.float32, like.device)
            self._buffers.append(kind(emit, f"{name}_trend", *number))

    def read(self) -> list[fx.Node | None]:
        """Last values, those before, and α; None for what is not kept."""
        return [buffer.read() for buffer in self._buffers] + [None] * (3 - len(self._buffers))

    def write(self, values: Iterable[fx.Node]) -> None:
        for buffer, value in zip(self._buffers, values, strict=True):
            buffer.write(value)

    def learn(self, computed: fx.Node, carried: fx.Node, fresh: fx.Node) -> None:
        """Keep values all of which were computed."""
        self.write(self._emit.inline(recall.learn, computed, *self.read(), carried, fresh))
