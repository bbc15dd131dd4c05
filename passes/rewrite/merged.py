"""Regions on merged tokens: merge at the entry, replay what is between, unmerge at the exits.

Where graphs of another pace share the memory (`paced`), text that leaves is remembered as well.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, fx

from toma_fx.config import TomaConfig
from toma_fx.errors import CannotRewrite
from toma_fx.merging import add_change, change_of, text_change_of
from toma_fx.passes.find.region import Group, Region
from toma_fx.passes.graph.emit import Emitter
from toma_fx.passes.graph.nodes import facts, map_leaves, shape
from toma_fx.passes.layouts.layout import AtDestinations, Segment, Step, TokenLayout
from toma_fx.passes.methods import METHODS, Plan
from toma_fx.passes.methods.base import MemoryPlan
from toma_fx.passes.methods.slots import Moment
from toma_fx.passes.rewrite.expect import check_shape, picture_of
from toma_fx.passes.rewrite.full_length import FullLength
from toma_fx.passes.rewrite.replay import replay


class RegionRefused(CannotRewrite):
    """A replay failed: this region has to stay as it is, and the others be tried again."""

    def __init__(self, region: Region, reason: str, node: fx.Node | None) -> None:
        super().__init__(reason, node)
        self.region = region


class MergedRegions:
    """Plain nodes of regions to new ones on merged tokens, and each group's plan.

    Args:
        emit: where nodes go.
        full: the nodes at full length, which regions read and return to.
        groups: from `plan`.
        config: what the methods read.

    Attributes:
        moment: what the guard says of a call; None for methods that plan at every call.
    """

    def __init__(
        self, emit: Emitter, full: FullLength, groups: Iterable[Group], config: TomaConfig
    ) -> None:
        self.moment: Moment | None = None
        self._emit = emit
        self._full = full
        self._config = config
        self._owner = {n: r for group in groups for r in group.units for n in r.steps}
        self._merged: dict[int, dict[fx.Node, fx.Node]] = {}  # by region
        self._plans: dict[int, Plan] = {}

    def __contains__(self, node: fx.Node) -> bool:
        """Whether a node belongs to a region."""
        return node in self._owner

    def exists_twice(self, node: fx.Node) -> bool:
        """Whether keys of all tokens need a node at full length, which others read merged."""
        return node in self._owner[node].twice

    def add(self, node: fx.Node) -> None:
        """Append what a region's node becomes.

        Raises:
            RegionRefused: the result contradicts the region's proof, or cannot be computed.
        """
        region = self._owner[node]
        try:
            self._add(node, region)
        except CannotRewrite as refusal:
            raise RegionRefused(region, refusal.reason, refusal.node) from refusal
        except Exception as error:
            reason = f"cannot run on merged tokens: {type(error).__name__}: {error}"
            raise RegionRefused(region, reason.splitlines()[0], node) from error

    def _add(self, node: fx.Node, region: Region) -> None:
        if id(region) not in self._merged:
            self._merged[id(region)] = {region.entry: self._merge(region)}
        step = region.steps[node]
        if step.exit is not None:
            self._leave(node, step.exit, region)
        else:
            self._replay(node, step, region)
        if node is region.end:
            self._add_change(node, region)

    def _merge(self, region: Region) -> fx.Node:
        ordered = self._full.is_ordered(region.entry)
        entry = self._full.read(region.entry, ordered)
        start, _ = picture_of(region.layout)
        self._prepare(region, entry, start, ordered)
        return self._plan(region).merge(entry, start, ordered, region)

    def _prepare(self, region: Region, entry: fx.Node, start: int, ordered: bool) -> None:
        """Make the plan of the region's group, where it is the first one."""
        group = region.group
        assert group is not None
        if group.index not in self._plans:
            order = self._full.order(group, entry.meta["val"].device)
            plan = METHODS[group.method].plan(group, order, self._emit, self._config)
            plan.prepare(self._planned_on(region, entry), start, self.moment, ordered)
            self._plans[group.index] = plan

    def _planned_on(self, region: Region, entry: fx.Node) -> fx.Node:
        """The hidden states that a plan is made from."""
        assert region.group is not None
        residual = region.stream if METHODS[region.group.method].on_residual else None
        return (
            entry if residual is None or residual not in self._full else self._full.read(residual)
        )

    def _replay(self, node: fx.Node, step: Step, region: Region) -> None:
        """Between entry and exits: the node again, on merged tokens."""
        merged = self._merged[id(region)]
        windows = self._plan(region).windows

        def operand(item: fx.Node) -> fx.Node:
            whole = item is region.entry and node not in region.seeds
            return merged[item] if item in merged and not whole else self._full.read(item)

        def table(item: AtDestinations, rows: fx.Node) -> fx.Node:
            layout = TokenLayout(0, None, item.segments)
            index = self._plan(region).index(*picture_of(layout), layout.length)
            if item.batch is None and shape(index)[0] > 1:
                raise CannotRewrite("a table meets tokens whose batch is folded into another axis")
            return index

        def length(segment: Segment) -> int:
            return windows.merged if segment.merged else segment.length

        new = replay(self._emit, node, step, operand, table, length)
        check_shape(node, new, step.layout, length)
        if step.layout is not None:
            merged[node] = new
        else:  # text that leaves stands for the node itself
            self._full.write(node, new)
            plan = self._plan(region)
            if isinstance(plan, MemoryPlan) and leaves(node, region):
                plan.learn_text(new)

    def _leave(self, node: fx.Node, index: int, region: Region) -> None:
        """Unmerge, and run the residual addition at full length, in the residual's order."""
        residual = node.args[1 - index]
        ordered = self._full.stays_ordered(residual, node)
        computed, *gates = region.added[node]
        layout = region.steps[computed].layout
        assert isinstance(layout, TokenLayout)
        start, _ = picture_of(layout)
        merged = self._merged[id(region)][computed]
        change = self._plan(region).unmerge(merged, start, ordered, node)
        change = self._gated(change, computed, gates)
        stream = self._full.read(residual, ordered)
        args = (change, stream) if index == 0 else (stream, change)
        new = self._emit.call(node.target, (*args, *node.args[2:]), node.kwargs, like=node)
        self._return(node, new, ordered, "region")

    def _gated(self, change: fx.Node, computed: fx.Node, gates: Iterable[fx.Node]) -> fx.Node:
        """What is added to a stream, from what was computed at full length."""
        for gate in gates:
            known = {computed: change}

            def operand(item: object) -> object:
                if not isinstance(item, fx.Node):
                    return item
                return known[item] if item in known else self._full.read(item)  # noqa: B023

            args, kwargs = map_leaves((gate.args, gate.kwargs), operand)
            change, computed = self._emit.call(gate.target, args, kwargs, like=gate), gate
        return change

    def _add_change(self, node: fx.Node, region: Region) -> None:
        """Add what a scope has changed to its entry at full length, in the entry's order."""
        ordered = self._full.stays_ordered(region.entry, node)
        hidden = self._full.read(region.entry, ordered)
        plan, merged = self._plan(region), self._merged[id(region)]
        start, length = picture_of(region.layout)[0], plan.windows.merged
        before, after = merged[region.entry], merged[node]
        change = self._emit.inline(change_of, before, after, start, length, like=node)
        full = plan.unmerge(change, 0, ordered, node)
        if isinstance(plan, MemoryPlan) and shape(after)[1] > length:
            text = self._emit.inline(text_change_of, before, after, start, length)
            plan.learn_text(text)
        new = self._emit.inline(add_change, hidden, full, after, start, length, like=node)
        self._return(node, new, ordered, "scope")

    def _return(self, node: fx.Node, new: fx.Node, ordered: bool, kind: str) -> None:
        if facts(new) != facts(node):
            raise CannotRewrite(f"the {kind}'s result is {facts(new)}, not {facts(node)}", node)
        self._full.write(node, new, ordered)

    def _plan(self, region: Region) -> Plan:
        assert region.group is not None
        return self._plans[region.group.index]


def leaves(node: fx.Node, region: Region) -> bool:
    """Whether a node of a region is text that others read."""
    step, value = region.steps[node], node.meta["val"]
    is_text = step.exit is None and step.layout is None and isinstance(value, Tensor)
    return is_text and any(user not in region.steps for user in node.users)
