"""What the passes know of a region, between finding it and rewriting it.

`find` fills in the proof, `plan` what becomes of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx

from toma_fx.passes.layouts.layout import Origin, Step, TokenLayout
from toma_fx.passes.layouts.origins import Piece
from toma_fx.report import seconds_text
from toma_fx.windows import Windows

MARGIN = 0.03
"""Share of a region's time that merging must save to be worth it: predictions are not exact."""


@dataclass(frozen=True)
class Forecast:
    """A region on a device.

    Attributes:
        before: seconds of a call at full length.
        after: seconds on merged tokens, merge and unmerge included, planning not.
        source: `predicted` from a profile, or `measured`.
    """

    before: float
    after: float
    source: str = "predicted"

    @property
    def gains(self) -> bool:
        """Whether merging saves more than the margin."""
        return self.after < self.before * (1 - MARGIN)

    def __str__(self) -> str:
        return f"{self.source} {seconds_text(self.before)} → {seconds_text(self.after)}"


@dataclass(frozen=True)
class Positions:
    """Coordinates of a stream's tokens: those from `start` on along an axis of an input.

    Coordinates in front of the tokens, `[B, 3, N]`, are given in seconds and pixels; behind them,
    `[N, 3]`, as whole numbers.
    """

    node: fx.Node
    start: int
    length: int
    # Which axis counts tokens, and which one coordinates.
    axis: int = 0
    columns: int = 1


@dataclass
class Region:
    """A run of nodes from its entry, the hidden states that feed linears, to residual additions."""

    # self_attention, cross_attention, joint_attention, parallel or feed_forward.
    kind: str
    # The hidden states `[B, L, C]` that are merged.
    entry: fx.Node
    # The nodes that read them merged: linears, or casts on the way to one.
    seeds: tuple[fx.Node, ...]
    # The attention and the linears that make this a region, in graph order.
    anchors: tuple[fx.Node, ...]
    # Path of the deepest module around the anchors.
    module_path: str
    # Which part of the entry's tokens is merged; None where it is all text.
    origin: Origin | None = None
    # Layout of the merged entry.
    layout: TokenLayout | None = None
    # What becomes of each node on merged tokens, in graph order; exits among them.
    steps: dict[fx.Node, Step] = field(default_factory=dict)
    # Sides of the grid, if a position table of the region is folded from some.
    grid: tuple[int, ...] | None = None
    # Where its tokens lie in a larger grid, if they are a run of one: its sides, and the first.
    within: tuple[tuple[int, ...], int] | None = None
    # Several pictures one after the other, if a position table is joined from theirs.
    pictures: tuple[Piece, ...] = ()
    # Coordinates of the tokens, if a position table of the region comes from some.
    positions: Positions | None = None
    # For each exit what is computed of its tokens, then the gates that all tokens share, up to what
    # is added; and whether one of those gates depends on an input of the call.
    added: dict[fx.Node, tuple[fx.Node, ...]] = field(default_factory=dict)
    gate_moves: bool = False
    # How deep its block lies among the merged ones: 0 is the first, towards 1 the last.
    depth: float = 0.0
    # Path and class of the block around the exits.
    block_path: str = ""
    block_class: str = ""
    # "merged", or why not: "skipped" by configuration or cost, "refused" because not proven.
    status: str = "merged"
    reason: str = ""
    # What merging it is worth on the device, where that was asked.
    forecast: Forecast | None = None
    # Which plan it uses.
    group: Group | None = None
    # Where keys and values are of all tokens: the nodes between the entry and the attention, which
    # stay at full length.
    keys: tuple[fx.Node, ...] = ()
    # What the user should know of it, merged or not.
    note: str = ""
    # Of a scope, a run of whole blocks that is rewritten as one region: the regions in it, and the
    # residual addition where it ends. There the entry, at full length, gets back only its change.
    parts: tuple[Region, ...] = ()
    end: fx.Node | None = None
    # And its nodes that exist twice: merged, and at full length for keys of all tokens.
    twice: frozenset[fx.Node] = frozenset()
    # The scope that is rewritten in place of this region.
    scope: Region | None = None

    @property
    def tokens(self) -> int:
        """Length of the merged stream, or of the entry where nothing is merged."""
        if self.origin is not None:
            return self.origin.length
        return int(self.entry.meta["val"].shape[1])

    @property
    def channels(self) -> int:
        return int(self.entry.meta["val"].shape[-1])

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        """All that is computed of the region, merged or not; the anchors where it is unproven."""
        return (*self.keys, *self.steps) or self.anchors

    @property
    def members(self) -> tuple[Region, ...]:
        """The regions of a scope; a region is its own."""
        return self.parts or (self,)

    @property
    def exits(self) -> list[fx.Node]:
        """The additions, or gates before them, where tokens return to full length, in order."""
        return [node for node in self.steps if self.residual(node) is not None]

    @property
    def stream(self) -> fx.Node | None:
        """The full-length stream that its first exit adds to; None where it has no exit."""
        return next((self.residual(node) for node in self.exits), None)

    def residual(self, node: fx.Node) -> fx.Node | None:
        """The full-length stream that an exit adds to; None for any other node."""
        if node is self.end:
            return self.entry
        step = self.steps.get(node)
        if step is None or step.exit is None:
            return None
        return step.stream or node.args[1 - step.exit]

    def drop(self, status: str, reason: str) -> None:
        """Leave the region as it is, and say why."""
        self.status, self.reason = status, reason


@dataclass
class Group:
    """Regions that share one plan, made at the first one's entry."""

    index: int
    windows: Windows
    # The method that plans it, by name.
    method: str = "toma"
    # Slot order on the host, None where slots are the tokens in sequence.
    order: tuple[int, ...] | None = None
    # Position ids that give the order, where the grid is data.
    positions: Positions | None = None
    # Sides of the grid where it is known, for methods that go by places instead of windows.
    grid: tuple[int, ...] | None = None
    # Side of the windows and what their order follows, for positions that are data.
    side: int | tuple[int, int, int] = 8
    follows: str = "tile"
    regions: list[Region] = field(default_factory=list)
    # What the user should know: clamped windows, another order than asked for.
    note: str = ""

    @property
    def units(self) -> list[Region]:
        """What is rewritten: scopes in place of the regions in them, and the other regions."""
        found = [region.scope or region for region in self.regions]
        return list({id(unit): unit for unit in found}.values())

    @property
    def reorders(self) -> bool:
        """Whether windows hold other tokens than the next ones in sequence."""
        return self.order is not None or self.positions is not None
