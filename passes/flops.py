"""Multiply-adds of a region before and after, counted twice as FLOPs, as the paper does."""

from __future__ import annotations

import math

from torch import fx

from toma_fx.passes.graphs import ATTENTIONS, LINEARS, shape
from toma_fx.passes.layout import TokenLayout
from toma_fx.passes.region import Region


def flops_before(region: Region) -> int:
    """FLOPs of the region's linears and attention at full length."""
    return sum(_flops(node) for node in region.steps or region.anchors)


def flops_after(region: Region) -> int:
    """The same on merged tokens, and the merge and unmerge matmuls; planning is not in it."""
    if region.status != "merged" or region.group is None:
        return flops_before(region)
    windows = region.group.windows
    kept = windows.merged / windows.tokens
    total = sum(_flops(node) * _shrinkage(node, region, kept) for node in region.steps)
    batch = int(region.entry.meta["val"].shape[0])
    matmul = 2 * batch * windows.merged * windows.size
    total += matmul * region.channels
    total += sum(matmul * shape(node)[-1] for node, s in region.steps.items() if s.exit is not None)
    return round(total)


def _flops(node: fx.Node) -> int:
    if node.target in LINEARS:
        return 2 * math.prod(shape(node)) * shape(node.args[0])[-1]
    if node.target in ATTENTIONS:
        query, key, value = (shape(arg) for arg in node.args[:3])
        return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
    return 0


def _shrinkage(node: fx.Node, region: Region, kept: float) -> float:
    """Share of a node's FLOPs left: one factor for each axis of merged tokens that it works on."""
    operands = node.args[:2] if node.target in ATTENTIONS else node.args[:1]
    share = 1.0
    for operand in operands:
        if operand is region.entry:
            layout = region.layout
        else:
            step = region.steps.get(operand)
            layout = step.layout if step is not None else None  # type: ignore[assignment]
        if isinstance(layout, TokenLayout) and layout.is_merged:
            merged = sum(s.length * (kept if s.merged else 1.0) for s in layout.segments)
            share *= merged / layout.length
    return share
