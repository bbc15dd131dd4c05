"""What one exit remembers: the last values of its tokens, and those before them."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, fx

from toma_fx import recall
from toma_fx.passes.graph.emit import Emitter
from toma_fx.passes.methods.slots import Moment, SlotBuffer, SlotTensors

_FEW = 3  # slots: of more, all of a memory is too much to read and write


class Kept:
    """The last values of one exit, or of one piece of text, and those before them."""

    def __init__(
        self,
        emit: Emitter,
        name: str,
        moment: Moment,
        sizes: tuple[int, ...],
        like: Tensor,
        history: int,
    ) -> None:
        kind = SlotTensors if moment.slots <= _FEW else SlotBuffer
        self._emit = emit
        self._buffers = [
            kind(emit, f"{name}_{which}", moment, sizes, like.dtype, like.device)
            for which in ("last", "before")[:history]
        ]

    def read(self) -> list[fx.Node | None]:
        """Last values and those before, None where these are not kept."""
        return [buffer.read() for buffer in self._buffers] + [None] * (2 - len(self._buffers))

    def write(self, values: Iterable[fx.Node]) -> None:
        for buffer, value in zip(self._buffers, values, strict=True):
            buffer.write(value)

    def learn(self, computed: fx.Node, fresh: fx.Node) -> None:
        """Keep values all of which were computed."""
        self.write(self._emit.inline(recall.learn, computed, *self.read(), fresh))
