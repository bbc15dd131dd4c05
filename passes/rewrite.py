"""Pass 4: build the merged graph. The only pass that edits, and it edits a copy.

Before: `x → norm → linear … linear → add(x)` on `[B, N, C]`. After:

    plan_(norm, order, phase, destinations, merging, unmerging)      once a group
    norm → merge → linear … linear → unmerge → add(x)                on [B, D, C] in between

Why a replay: every node of a region is called again on merged fake values, so that a view that
cannot be taken, or a result of another shape than its layout says, shows here and not in a picture.

Precondition: `plan` has run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode

from toma_fx.config import TomaConfig
from toma_fx.errors import CannotRewrite
from toma_fx.merging import gather_rows, merge_tokens, unmerge_tokens
from toma_fx.passes.clock import Clock, GuardInputs
from toma_fx.passes.emit import Emitter
from toma_fx.passes.graphs import map_leaves, shape
from toma_fx.passes.groups import GroupNodes
from toma_fx.passes.layout import AtDestinations, Segment, Step, TokenCount, TokenLayout
from toma_fx.passes.normalize import keep_metadata
from toma_fx.passes.region import Group, Region


class RegionRefused(CannotRewrite):
    """A replay failed: this region has to stay as it is, and the others be tried again."""

    def __init__(self, region: Region, reason: str, node: fx.Node | None) -> None:
        super().__init__(reason, node)
        self.region = region


def rewrite(
    gm: fx.GraphModule, groups: list[Group], config: TomaConfig, guard: GuardInputs
) -> fx.GraphModule:
    """A new graph module whose regions run on merged tokens; `gm` is not modified.

    Raises:
        RegionRefused: the replay of a region contradicts its proof.
    """
    return _Rewriter(gm, groups, config, Clock(guard, groups, config)).run()


class _Rewriter:
    def __init__(
        self, gm: fx.GraphModule, groups: list[Group], config: TomaConfig, clock: Clock
    ) -> None:
        self._gm = gm
        self._clock = clock
        self._graph = fx.Graph()
        self._result = fx.GraphModule(torch.nn.Module(), self._graph)
        values = [node.meta.get("val") for node in gm.graph.nodes]
        mode = detect_fake_mode(values) or FakeTensorMode(allow_non_fake_inputs=True)
        self._emit = Emitter(self._result, self._graph, mode)
        self._copies: dict[fx.Node, fx.Node] = {}
        self._plans = {group.index: GroupNodes(group, self._emit, config) for group in groups}
        self._owner = {n: r for g in groups for r in g.regions for n in r.steps}
        self._merged: dict[int, dict[fx.Node, fx.Node]] = {}
        self._phase: fx.Node | None = None

    def run(self) -> fx.GraphModule:
        for node in self._gm.graph.nodes:
            region = self._owner.get(node)
            if node.op in ("get_attr", "call_module"):
                setattr(self._result, node.target, getattr(self._gm, node.target))
            if node.op != "placeholder":
                self._begin()
            if region is None:
                self._copies[node] = self._graph.node_copy(node, self._copies.__getitem__)
                continue
            try:
                self._replay(node, region)
            except CannotRewrite as refusal:
                raise RegionRefused(region, refusal.reason, refusal.node) from refusal
            except Exception as error:
                reason = f"cannot run on merged tokens: {type(error).__name__}: {error}"
                raise RegionRefused(region, reason.splitlines()[0], node) from error
        self._graph.eliminate_dead_code()
        self._result.recompile()
        keep_metadata(self._gm, self._result)
        return self._result

    def _begin(self) -> None:
        """What stands between the inputs and the first operation: the phase of the plans."""
        if self._phase is None:
            self._phase = self._clock.emit(self._emit, self._copies)

    def _replay(self, node: fx.Node, region: Region) -> None:
        step = region.steps[node]
        merged = self._merged.get(id(region))
        if merged is None:
            merged = self._merged[id(region)] = {region.entry: self._merge(region)}
        if step.exit is not None:
            self._copies[node] = self._leave(node, step.exit, region, merged)
            return
        args, kwargs = self._resolved(node, step, region, merged)
        target = step.target or node.target
        new = self._emit.call(target, args, kwargs, like=node)  # type: ignore[arg-type]
        _check(node, new, step.layout, region)
        # Results without merged tokens (text that leaves) stand for the node itself.
        (merged if step.layout is not None else self._copies)[node] = new

    def _merge(self, region: Region) -> fx.Node:
        entry = self._copies[region.entry]
        plan = self._plan(region)
        start, length = _picture(region.layout)
        assert self._phase is not None
        plan.prepare(entry, start, self._phase, self._copies)
        return self._emit.inline(
            merge_tokens, entry, plan.merging, plan.order, start, length, like=region.seeds[0]
        )

    def _leave(
        self, node: fx.Node, index: int, region: Region, merged: dict[fx.Node, fx.Node]
    ) -> fx.Node:
        source = node.args[index]
        layout = self._layout(source, region)
        plan = self._plan(region)
        start, _ = _picture(layout)
        full = self._emit.inline(
            unmerge_tokens,
            merged[source],  # type: ignore[index]
            plan.unmerging,
            plan.inverse,
            start,
            plan.windows.merged,
            like=node,
        )
        args = [self._copies.get(arg, arg) if i != index else full for i, arg in enumerate(node.args)]
        new = self._emit.call(node.target, tuple(args), node.kwargs, like=node)  # type: ignore[arg-type]
        if _facts(new) != _facts(node):
            raise CannotRewrite(f"the region's result is {_facts(new)}, not {_facts(node)}", node)
        return new

    def _resolved(
        self, node: fx.Node, step: Step, region: Region, merged: dict[fx.Node, fx.Node]
    ) -> tuple[Any, Any]:
        def leaf(item: Any) -> Any:
            if isinstance(item, fx.Node):
                return merged[item] if item in merged else self._copies[item]
            if isinstance(item, TokenCount):
                return sum(_after(segment, region) for segment in item.segments)
            if isinstance(item, AtDestinations):
                return self._gathered(item, region, leaf)
            return item

        args = node.args if step.args is None else step.args
        kwargs = node.kwargs if step.kwargs is None else step.kwargs
        return map_leaves(tuple(args), leaf), map_leaves(dict(kwargs), leaf)

    def _gathered(self, item: AtDestinations, region: Region, leaf: Any) -> fx.Node:
        table = leaf(item.table)
        layout = TokenLayout(0, None, item.segments)
        index = self._plan(region).rows(*_picture(layout), layout.length)
        if item.batch is None and shape(index)[0] > 1:
            raise CannotRewrite("a table meets tokens whose batch is folded into another axis")
        return self._emit.inline(gather_rows, table, index, item.axis, item.batch, item.leading)

    def _plan(self, region: Region) -> GroupNodes:
        assert region.group is not None
        return self._plans[region.group.index]

    def _layout(self, node: object, region: Region) -> TokenLayout:
        layout = region.layout if node is region.entry else region.steps[node].layout  # type: ignore[index]
        assert isinstance(layout, TokenLayout)
        return layout


def _picture(layout: TokenLayout | None) -> tuple[int, int]:
    """Where the merged segment starts, which is the same before and after merging; its length."""
    assert layout is not None
    start = 0
    for segment in layout.segments:
        if segment.merged:
            return start, segment.length
        start += segment.length
    raise AssertionError("a merged layout has a merged segment")


def _after(segment: Segment, region: Region) -> int:
    assert region.group is not None
    return region.group.windows.merged if segment.merged else segment.length


def _check(old: fx.Node, new: fx.Node, layout: Any, region: Region) -> None:
    """The replayed shape is the old one with the token axis shortened."""
    if isinstance(layout, tuple) or not isinstance(new.meta["val"], torch.Tensor):
        return
    expected = list(shape(old))
    if layout is not None:
        expected[layout.axis] = sum(_after(segment, region) for segment in layout.segments)
    if tuple(expected) != shape(new):
        raise CannotRewrite(f"merged shape is {shape(new)}, the layout says {tuple(expected)}", old)


def _facts(node: fx.Node) -> tuple[Any, ...]:
    value = node.meta["val"]
    return tuple(value.shape), value.dtype, value.device
