"""A second run for another batch, and what both have in common: a graph for all.

What the first has decided holds for the second: which regions merge, in which windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from toma_fx.config import TomaConfig
from toma_fx.errors import CannotRewrite
from toma_fx.passes.find.region import Forecast, Region
from toma_fx.passes.graph.outside import Outside
from toma_fx.passes.layouts.analysis import Analysis
from toma_fx.passes.methods.pace import Pace
from toma_fx.passes.normalize.batch import Batch, with_sizes
from toma_fx.passes.normalize.exchanges import flatten_exchanges
from toma_fx.passes.normalize.gathers import flatten_gathers
from toma_fx.passes.normalize.normalize import normalize
from toma_fx.passes.normalize.wrapped import call_own_linears
from toma_fx.passes.plan.plan import plan
from toma_fx.passes.plan.scope import Scopes
from toma_fx.passes.rewrite.batched import Batched, Generaliser
from toma_fx.passes.stages import Rewriting, find_regions, guard_of
from toma_fx.windows import Windows


@dataclass
class Again:
    """The passes once more.

    Attributes:
        gm: the graph that was given.
        inputs: of it, with the batch as a symbol.
        batch: that symbol, and another size of it.
        regions: of the first run, each with its fate.
        config: how it is merged.
        pace: what it computes of its regions.
        outside: what it is told; None where nobody tells anything.
    """

    gm: fx.GraphModule
    inputs: Sequence[Any]
    batch: Batch
    regions: Sequence[Region]
    config: TomaConfig
    pace: Pace
    outside: Outside | None

    def generalise(self, merged: fx.GraphModule) -> Batched:
        """Make the merged graph of the first run one for batches of every size, in place.

        Raises:
            CannotRewrite: the two graphs differ in more than sizes; nothing is changed then.
        """
        batch = self.batch
        if self.config.cfg_pairs and not bool(batch.of(self.inputs) % 2 == 0):
            raise CannotRewrite("an odd batch has no pairs")
        graphs = merged, self._merged()
        return Generaliser(graphs, (batch.size, batch.other), self.inputs, batch.place).run()

    def _merged(self) -> fx.GraphModule:
        given = with_sizes(self.inputs, {self.batch.symbol: self.batch.other})
        normal, told = normalize(self.gm, given), self.outside or Outside()
        analysis = Analysis(normal)
        regions = find_regions(analysis, self.config, told)
        known = self._fates(regions)

        def judge(region: Region, windows: Windows) -> Forecast:
            found = known[id(region)].forecast
            if found is None:
                raise CannotRewrite("it was not judged")
            return found

        scopes = Scopes(analysis, regions, self.config)
        groups = plan(regions, self.config, judge, scopes.widen, told)
        if not groups:
            raise CannotRewrite("nothing merges for another batch")
        guard = guard_of(analysis, groups, self.config, self.outside)
        one = Rewriting(normal, analysis, regions, guard, self.config, judge, scopes, told, False)
        result = one.run(self.pace)
        call_own_linears(result, self.inputs)
        flatten_exchanges(result)
        flatten_gathers(result)
        return result

    def _fates(self, regions: Sequence[Region]) -> dict[int, Region]:
        """The first run's region for each of the second, by `id`, with its fate."""
        paths = [[r.module_path for r in found] for found in (self.regions, regions)]
        if paths[0] != paths[1]:
            raise CannotRewrite("another batch has other regions")
        for first, second in zip(self.regions, regions, strict=True):
            if first.status != "merged":
                second.drop(first.status, first.reason)
        return {id(b): a for a, b in zip(self.regions, regions, strict=True)}
