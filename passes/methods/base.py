"""What a method of token merging tells the passes; each method is one file beside this one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import fx

from toma_fx.config import TomaConfig
from toma_fx.devices.profile import DeviceProfile
from toma_fx.merging import row_index
from toma_fx.order import Window
from toma_fx.passes.find.region import Group, Region
from toma_fx.passes.graph.emit import Emitter
from toma_fx.passes.graph.nodes import aten
from toma_fx.passes.graph.work import Work
from toma_fx.passes.methods.order_nodes import OrderNodes
from toma_fx.passes.methods.slots import Moment
from toma_fx.windows import Windows


class Plan(ABC):
    """A group's plan in the graph that is being built.

    Args:
        group: whose plan it is.
        order: nodes of the token order.
        emit: where nodes go.
        config: temperature, unmerge, guidance pairs.
    """

    def __init__(self, group: Group, order: OrderNodes, emit: Emitter, config: TomaConfig) -> None:
        self.windows = group.windows
        self._order = order
        self._group = group
        self._emit = emit
        self._config = config
        self._rows: fx.Node | None = None
        self._indexes: dict[tuple[int, int], fx.Node] = {}

    def prepare(self, hidden: fx.Node, start: int, moment: Moment | None, ordered: bool) -> None:
        """Emit the plan from hidden states `[B, L, C]` whose picture begins at `start`.

        Args:
            moment: what is due; None for methods that plan at every call.
            ordered: the tokens stand in window order already.
        """
        if self.windows.tokens != hidden.meta["val"].shape[1]:
            stop = start + self.windows.tokens
            hidden = self._emit.call(aten.slice.Tensor, (hidden, 1, start, stop))
        self._make(hidden, moment, ordered)

    def index(self, start: int, length: int, total: int) -> fx.Node:
        """`[B, L']` row index of tables over all tokens, the picture's at their destinations."""
        if self._rows is None:
            self._rows = self._destination_rows()
        key = (start, total)
        if key not in self._indexes:
            after = total - start - length
            self._indexes[key] = self._emit.inline(row_index, self._rows, start, after, length)
        return self._indexes[key]

    @abstractmethod
    def merge(self, entry: fx.Node, start: int, ordered: bool, region: Region) -> fx.Node:
        """`[B, L, C]` to `[B, L − N + D, C]`."""

    @abstractmethod
    def unmerge(self, merged: fx.Node, start: int, ordered: bool, like: fx.Node) -> fx.Node:
        """`[B, L − N + D, C]` back to `[B, L, C]`."""

    @abstractmethod
    def _make(self, hidden: fx.Node, moment: Moment | None, ordered: bool) -> None:
        """Emit the plan of a picture `[B, N, C]`."""

    @abstractmethod
    def _destination_rows(self) -> fx.Node:
        """`[B, D]` or `[1, D]`: the token that stands for each merged one."""


class MemoryPlan(Plan):
    """A plan whose exits remember: what tokens, and text that sees them, add to their streams.

    A graph calls one of `unmerge`, `learn` and `predict` for each exit, by its pace, and likewise
    one of `learn_text` and `predict_text` for each piece of text.
    """

    @abstractmethod
    def learn(self, change: fx.Node, start: int) -> None:
        """Remember all of `[B, L, C]`, whose picture begins at `start`."""

    @abstractmethod
    def predict(self, like: fx.Node, start: int) -> fx.Node:
        """`[B, L, C]` as `like`, which adds that much, from what is remembered."""

    @abstractmethod
    def learn_text(self, text: fx.Node) -> None:
        """Remember a tensor of any shape."""

    @abstractmethod
    def predict_text(self, like: fx.Node) -> fx.Node:
        """A tensor as `like` from what is remembered."""


@dataclass(frozen=True)
class Method:
    """How a method plans, merges and unmerges, and what that costs.

    Attributes:
        plan: emits its nodes.
        cells: side of a window, and the order in which windows follow the grid.
        windows: tokens, tokens a window and configuration to windows.
        readers: the readers of a region's entry that see merged tokens; none leaves it out.
        merging: kernels that merge and unmerge a region.
        planning: seconds of a group's plan per step, on average.
        stateful: keeps its plan between calls, under the guard.
        remembers: keeps what tokens were: it cannot do without a timestep, and loses nothing by a
            larger scope.
        sees_all: regions whose keys and values are of all tokens, where the user leaves it open.
        hoists: gains from a residual stream in window order.
        on_residual: plans on the residual stream instead of on the region's entry.
        returns: brings tokens back to full length; else they end inside the region.
    """

    plan: type[Plan]
    cells: Callable[[TomaConfig], tuple[Window, str]]
    windows: Callable[[int, int, TomaConfig], Windows]
    readers: Callable[[Region], tuple[fx.Node, ...]]
    merging: Callable[[Region, Windows], list[Work]]
    planning: Callable[[Group, TomaConfig, DeviceProfile], float]
    stateful: bool = False
    remembers: bool = False
    hoists: bool = False
    on_residual: bool = False
    returns: bool = True
    sees_all: Callable[[Region], bool] = lambda region: False


def all_readers(region: Region) -> tuple[fx.Node, ...]:
    """Attention and linears all run on merged tokens."""
    return region.seeds
