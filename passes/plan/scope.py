"""Within pass 3: widen regions to scopes, runs of whole blocks that merge once. Read-only.

Why: a block of three regions merges and unmerges three times, and its norms run at full length.
Nothing between its first norm and its last addition needs the full-length stream. So the stream
itself is merged where the block begins, and the block replays on merged tokens. Only the change is
added back: the detail that merging loses of `x` is still in `x`.

Before, at each region: `norm → merge → linear … linear → unmerge → add(x)`. After, at each scope:

    x' = merge(x)
    y' = block(x')                     norms, attention, MLP and additions on [B, D, C]
    y  = x + unmerge(y' − x')          text in the same stream is that of y'

The proof is that of `find`, begun at the stream instead of behind its norm: layouts flow from the
readers of `x` to the last addition, where they must be those of `x` again. What needs the
full-length stream in between (a control signal, an operation without a rule) is a refusal, and so
is a region in there that stays as it is: then regions merge one by one, and their reason says why.

Precondition: `find` has run; the regions given are neighbours that share a plan.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from toma_fx.config import TomaConfig
from toma_fx.errors import CannotRewrite
from toma_fx.passes.find.region import Region
from toma_fx.passes.layouts.analysis import Analysis
from toma_fx.passes.methods import METHODS
from toma_fx.passes.plan.scope_proof import prove

_LAST = ("feed_forward", "parallel")


class Scopes:
    """Widens the regions of a plan, and remembers what was proven and what refused.

    Args:
        analysis: of the graph that the regions lie in.
        regions: all from `find`: a scope may hold none that stays at full length.
        config: its `scope` and `span`.
    """

    def __init__(self, analysis: Analysis, regions: list[Region], config: TomaConfig) -> None:
        self._analysis = analysis
        self._regions = regions
        self._widest = config.scope == "auto" and METHODS[config.method].remembers
        self._kind = "span" if self._widest else config.scope
        self._blocks = _blocks_of_a_scope(config, self._widest)
        self._whole = blocks_of(region for region in regions if region.steps)
        self._known: dict[tuple[int, ...], Region | str] = {}

    def widen(self, members: list[Region]) -> list[Region]:
        """Scopes over the regions of one plan, and the regions that stay on their own."""
        # One memory of a block would hold its gates as they were: each region has its own instead.
        if self._widest and any(region.gate_moves for region in members):
            return members
        # Keys of all tokens need the whole stream where each block begins.
        most = min(self._blocks, 1) if self._widest and _sees_all(members) else self._blocks
        if not most:
            return members
        found, blocks = [], blocks_of(members)
        for start in range(0, len(blocks), most):
            found += self._widened(blocks[start : start + most])
        return found

    def refuse(self, scope: Region, reason: str) -> bool:
        """Leave a scope be from now on; False where it is a region."""
        if scope.parts:
            self._known[_key(scope.parts)] = reason
        return bool(scope.parts)

    def _widened(self, blocks: list[list[Region]]) -> list[Region]:
        """One scope over all blocks, else one over each (half of them), else their regions."""
        parts = [region for block in blocks for region in block]
        found = self._proof(parts)
        if isinstance(found, Region):
            for region in parts:
                region.scope = found
            return [found]
        units = [unit for part in self._smaller(blocks) for unit in part]
        for region in parts:
            if len(blocks) == 1 or (region.scope is not None and not self._widest):
                instead = "region by region" if len(blocks) == 1 else "block by block"
                region.reason = f"scope: {found}; merged {instead}"
        return units

    def _smaller(self, blocks: list[list[Region]]) -> list[list[Region]]:
        """What is merged instead of one scope over all blocks: the widest is searched by halves."""
        if len(blocks) == 1:
            return blocks
        half = len(blocks) // 2 if self._widest else 1
        parts = [blocks[start : start + half] for start in range(0, len(blocks), half)]
        return [self._widened(part) for part in parts]

    def _proof(self, parts: list[Region]) -> Region | str:
        """The scope over some regions, or why there is none."""
        key = _key(parts)
        if key not in self._known:
            try:
                self._need_whole_blocks(parts)
                kind = "block" if self._widest and len(blocks_of(parts)) == 1 else self._kind
                self._known[key] = prove(kind, parts, self._analysis, self._regions)
            except CannotRewrite as refusal:
                self._known[key] = refusal.reason
        return self._known[key]

    def _need_whole_blocks(self, parts: list[Region]) -> None:
        """What was skipped or refused in a block wants its stream at full length."""
        inside = set(_key(parts))
        beside = [r for block in self._whole if inside.intersection(_key(block)) for r in block]
        paths = {region.block_path for region in parts}
        for region in self._regions:
            if region.origin is not None and not region.steps:  # refused before its block is known
                beside += [region] * any(_within(region.module_path, path) for path in paths)
        for region in beside:
            if id(region) not in inside:
                raise CannotRewrite(f"the {region.kind} in it stays at full length")


def _blocks_of_a_scope(config: TomaConfig, widest: bool) -> int:
    """At most; 0 where regions merge one by one. A scope has one plan: `share` bounds it."""
    if widest:
        return {"run": sys.maxsize, "block": 1, "region": 0}[config.share]
    return {"block": 1, "span": config.span}.get(config.scope, 0)


def _sees_all(regions: Iterable[Region]) -> bool:
    """Whether the keys of an attention are those of all tokens."""
    return any(region.keys for region in regions)


def blocks_of(regions: Iterable[Region]) -> list[list[Region]]:
    """Neighbours whose additions lie in one module, up to its feed-forward or parallel region."""
    blocks: list[list[Region]] = []
    for region in regions:
        if not blocks or not _continues(blocks[-1], region):
            blocks.append([])
        blocks[-1].append(region)
    return blocks


def scope_remarks(regions: list[Region]) -> list[str]:
    """How often a report's regions merge, where that is less often than each."""
    scopes = {id(r.scope): r.scope for r in regions if r.scope and r.status == "merged"}.values()
    found = []
    for kind in sorted({scope.kind for scope in scopes}):
        alike = [scope for scope in scopes if scope.kind == kind]
        blocks = sum(len(blocks_of(scope.parts)) for scope in alike)
        spans = f"{len(alike)} spans over " if kind == "span" else ""
        found.append(f"merged once a {kind}: {spans}{blocks} blocks")
    return found


def _continues(block: list[Region], region: Region) -> bool:
    """Whether a region belongs to the block before it.

    A module that is called twice, or that holds all blocks of a model in one `forward`, is more
    than one block: a block ends with its MLP, and at the root no kind comes twice.
    """
    last = block[-1]
    if (last.block_path, last.block_class) != (region.block_path, region.block_class):
        return False
    repeats = not region.block_path and region.kind in {member.kind for member in block}
    return last.kind not in _LAST and not repeats


def _within(path: str, module: str) -> bool:
    return not module or f"{path}.".startswith(f"{module}.")


def _key(parts: Iterable[Region]) -> tuple[int, ...]:
    return tuple(map(id, parts))
