"""Pass 5: build the merged graph. The only pass that edits, and it edits a copy.

Before: `x → norm → linear … linear → add(x)` on `[B, N, C]`. After:

    x → gather(order)                                                once a stage
    plan_(norm, phase, destinations, merging, unmerging)             once a group
    norm → merge → linear … linear → unmerge → add(x)                on [B, D, C] in between

Why a replay: every node of a region is called again on merged fake values, so that a view that
cannot be taken, or a result of another shape than its layout says, shows here and not in a picture.

Precondition: `plan` and `hoist` have run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode

from toma_fx.config import TomaConfig
from toma_fx.errors import CannotRewrite
from toma_fx.merging import add_change, change_of, gather_rows
from toma_fx.passes.find.region import Group, Region
from toma_fx.passes.graph.emit import Emitter
from toma_fx.passes.graph.nodes import map_leaves, shape
from toma_fx.passes.layouts.layout import AtDestinations, Segment, Step, TokenLayout
from toma_fx.passes.methods import METHODS, Plan
from toma_fx.passes.methods.order_nodes import OrderNodes
from toma_fx.passes.normalize.normalize import keep_metadata
from toma_fx.passes.plan.hoist import Stage
from toma_fx.passes.rewrite.clock import Clock, GuardInputs
from toma_fx.passes.rewrite.expect import check_shape, facts, picture_of, restrided, strides
from toma_fx.passes.rewrite.replay import replay


class RegionRefused(CannotRewrite):
    """A replay failed: this region has to stay as it is, and the others be tried again."""

    def __init__(self, region: Region, reason: str, node: fx.Node | None) -> None:
        super().__init__(reason, node)
        self.region = region


def rewrite(
    gm: fx.GraphModule,
    groups: list[Group],
    stages: list[Stage],
    guard: GuardInputs,
    config: TomaConfig,
) -> fx.GraphModule:
    """A new graph module whose regions run on merged tokens; `gm` is not modified.

    Args:
        gm: the normalised graph.
        groups: from `plan`.
        stages: from `hoist`.
        guard: the inputs that the guard reads.
        config: temperature, unmerge, schedule.

    Raises:
        RegionRefused: the replay of a region contradicts its proof.
    """
    return _Rewriter(gm, groups, stages, Clock(guard, groups, config), config).run()


class _Rewriter:
    def __init__(
        self,
        gm: fx.GraphModule,
        groups: list[Group],
        stages: list[Stage],
        clock: Clock,
        config: TomaConfig,
    ) -> None:
        self._gm = gm
        self._config = config
        self._clock = clock
        self._graph = fx.Graph()
        self._result = fx.GraphModule(torch.nn.Module(), self._graph)
        values = [node.meta.get("val") for node in gm.graph.nodes]
        mode = detect_fake_mode(values) or FakeTensorMode(allow_non_fake_inputs=True)
        self._emit = Emitter(self._result, self._graph, mode)
        self._owner = {n: r for g in groups for r in g.units for n in r.steps}
        self._starts = {stage.start: stage for stage in stages}
        self._stage = {node: stage for stage in stages for node in (*stage.layouts, *stage.steps)}
        # New nodes: at full length, at full length in window order, merged (by region).
        self._natural: dict[fx.Node, fx.Node] = {}
        self._ordered: dict[fx.Node, fx.Node] = {}
        self._merged: dict[int, dict[fx.Node, fx.Node]] = {}
        self._plans: dict[int, Plan] = {}
        self._orders: dict[object, OrderNodes] = {}
        self._phase: fx.Node | None = None
        self._keeps_plans = any(METHODS[group.method].stateful for group in groups)

    def run(self) -> fx.GraphModule:
        for node in self._gm.graph.nodes:
            if node.op in ("get_attr", "call_module"):
                setattr(self._result, node.target, getattr(self._gm, node.target))
            if node.op != "placeholder" and self._phase is None and self._keeps_plans:
                self._phase = self._clock.emit(self._emit, self._natural)
            if node in self._owner:
                self._in_region(node, self._owner[node])
            elif node in self._stage and node not in self._starts:
                self._in_order(node, self._stage[node])
            elif node.op == "output":
                self._graph.output(map_leaves(node.args[0], self._returned))
            else:
                self._natural[node] = self._copied(node)
                if node in self._starts:
                    self._ordered[node] = self._permuted(node, self._starts[node], back=False)
        self._graph.eliminate_dead_code()
        self._result.recompile()
        keep_metadata(self._gm, self._result)
        return self._result

    def _copied(self, node: fx.Node) -> fx.Node:
        """A node outside of regions; evaluated again where an operand's strides have changed."""
        sources = node.all_input_nodes if node.op == "call_function" else []
        if all(strides(self._full(source)) == strides(source) for source in sources):
            return self._graph.node_copy(node, self._full)
        args = map_leaves(node.args, lambda arg: self._full(arg) if _is_node(arg) else arg)
        kwargs = map_leaves(dict(node.kwargs), lambda a: self._full(a) if _is_node(a) else a)
        try:
            return self._emit.call(node.target, args, kwargs, like=node)
        except Exception as error:
            raise CannotRewrite(f"needs the strides of the plain model: {error}", node) from error

    def _returned(self, item: Any) -> Any:
        """A result, in the strides of the plain model's: what reads it may take views of it."""
        if not isinstance(item, fx.Node):
            return item
        full = self._full(item)
        wanted = strides(item)
        if strides(full) == wanted:
            return full
        return self._emit.inline(restrided, full, wanted, like=item)

    def _full(self, node: fx.Node) -> fx.Node:
        """A node at full length in natural order; put back into it once, where first needed."""
        if node not in self._natural:
            self._natural[node] = self._permuted(node, self._stage[node], back=True)
        return self._natural[node]

    def _permuted(self, node: fx.Node, stage: Stage, back: bool) -> fx.Node:
        layout = stage.layouts[node]
        source = self._ordered[node] if back else self._natural[node]
        start, _ = picture_of(layout)
        order = self._order(stage.group, source.meta["val"].device)
        index = order.index(back, start, layout.length)
        return self._emit.inline(gather_rows, source, index, layout.axis, None, 0, like=node)

    def _in_order(self, node: fx.Node, stage: Stage) -> None:
        """Outside of regions, on the stream in window order."""
        step = stage.steps[node]

        def operand(item: fx.Node) -> fx.Node:
            return self._ordered[item] if item in self._ordered else self._full(item)

        def table(item: AtDestinations, rows: fx.Node) -> fx.Node:
            layout = TokenLayout(0, None, item.segments)
            order = self._order(stage.group, rows.meta["val"].device)
            return order.index(False, picture_of(layout)[0], layout.length)

        found = replay(self._emit, node, step, operand, table, lambda s: s.length)
        known = self._natural if step.layout is None else self._ordered  # text has one order
        known[node] = found
        if facts(found) != facts(node):
            raise CannotRewrite(f"in window order {node.name} has another shape", node)

    def _in_region(self, node: fx.Node, region: Region) -> None:
        try:
            if id(region) not in self._merged:
                self._merged[id(region)] = {region.entry: self._merge(region)}
            step = region.steps[node]
            if step.exit is not None:
                self._leave(node, step.exit, region)
            else:
                self._on_merged(node, step, region)
            if node is region.end:
                self._add_change(node, region)
        except CannotRewrite as refusal:
            raise RegionRefused(region, refusal.reason, refusal.node) from refusal
        except Exception as error:
            reason = f"cannot run on merged tokens: {type(error).__name__}: {error}"
            raise RegionRefused(region, reason.splitlines()[0], node) from error

    def _on_merged(self, node: fx.Node, step: Step, region: Region) -> None:
        merged = self._merged[id(region)]
        windows = self._plan(region).windows

        def operand(item: fx.Node) -> fx.Node:
            whole = item is region.entry and node not in region.seeds
            return merged[item] if item in merged and not whole else self._full(item)

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
        # Results without merged tokens (text that leaves) stand for the node itself.
        (merged if step.layout is not None else self._natural)[node] = new

    def _merge(self, region: Region) -> fx.Node:
        ordered = region.entry in self._ordered
        entry = self._ordered[region.entry] if ordered else self._full(region.entry)
        start, _ = picture_of(region.layout)
        group = region.group
        assert group is not None
        if group.index not in self._plans:
            order = self._order(group, entry.meta["val"].device)
            plan = METHODS[group.method].plan(group, order, self._emit, self._config)
            plan.prepare(self._planned_on(region, entry), start, self._phase, ordered)
            self._plans[group.index] = plan
        return self._plan(region).merge(entry, start, ordered, region)

    def _planned_on(self, region: Region, entry: fx.Node) -> fx.Node:
        """The hidden states that a plan is made from."""
        assert region.group is not None
        residual = region.stream if METHODS[region.group.method].on_residual else None
        known = residual is not None and (residual in self._natural or residual in self._ordered)
        return self._full(residual) if known and residual is not None else entry

    def _leave(self, node: fx.Node, index: int, region: Region) -> None:
        """Unmerge, and run the residual addition at full length, in the residual's order."""
        source, residual = node.args[index], node.args[1 - index]
        ordered = residual in self._ordered and node in self._stage
        plan = self._plan(region)
        merged = self._merged[id(region)][source]
        layout = region.steps[source].layout
        assert isinstance(layout, TokenLayout)
        full = plan.unmerge(merged, picture_of(layout)[0], ordered, node)
        other = self._ordered[residual] if ordered else self._full(residual)
        args = (full, other, *node.args[2:]) if index == 0 else (other, full, *node.args[2:])
        new = self._emit.call(node.target, args, node.kwargs, like=node)
        if facts(new) != facts(node):
            raise CannotRewrite(f"the region's result is {facts(new)}, not {facts(node)}", node)
        (self._ordered if ordered else self._natural)[node] = new

    def _add_change(self, node: fx.Node, region: Region) -> None:
        """Add what a scope has changed to its entry at full length, in the entry's order."""
        ordered = region.entry in self._ordered and node in self._stage
        hidden = self._ordered[region.entry] if ordered else self._full(region.entry)
        plan, merged = self._plan(region), self._merged[id(region)]
        start, length = picture_of(region.layout)[0], plan.windows.merged
        before, after = merged[region.entry], merged[node]
        change = self._emit.inline(change_of, before, after, start, length, like=node)
        full = plan.unmerge(change, 0, ordered, node)
        new = self._emit.inline(add_change, hidden, full, after, start, length, like=node)
        if facts(new) != facts(node):
            raise CannotRewrite(f"the scope's result is {facts(new)}, not {facts(node)}", node)
        (self._ordered if ordered else self._natural)[node] = new

    def _plan(self, region: Region) -> Plan:
        assert region.group is not None
        return self._plans[region.group.index]

    def _order(self, group: Group, device: torch.device) -> OrderNodes:
        key = (group.windows, group.order, group.positions)
        if key not in self._orders:
            self._orders[key] = OrderNodes(group, self._emit, self._natural, device)
        return self._orders[key]


def _is_node(item: object) -> bool:
    return isinstance(item, fx.Node)
