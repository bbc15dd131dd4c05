"""The stages of one run over a normalised graph, as `runner` and `again` call them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import fx

from toma_fx.config import TomaConfig
from toma_fx.devices import find_profile
from toma_fx.errors import CannotRewrite
from toma_fx.passes.autotune import Autotuner
from toma_fx.passes.find.find import find
from toma_fx.passes.find.region import Group, Region
from toma_fx.passes.graph.outside import Outside
from toma_fx.passes.layouts.analysis import Analysis
from toma_fx.passes.methods import METHODS
from toma_fx.passes.methods.pace import Pace
from toma_fx.passes.plan.forecast import Predictor
from toma_fx.passes.plan.hoist import hoist
from toma_fx.passes.plan.plan import Judge, plan
from toma_fx.passes.plan.scope import Scopes
from toma_fx.passes.rewrite.guard_inputs import GuardInputs, find_guard_inputs
from toma_fx.passes.rewrite.merged import RegionRefused
from toma_fx.passes.rewrite.rewrite import rewrite


def find_regions(analysis: Analysis, config: TomaConfig, outside: Outside) -> list[Region]:
    return find(
        analysis,
        config.grid,
        METHODS[config.method],
        config.keys,
        grid_start=config.grid_start,
        references=config.references,
        outside=outside,
    )


@dataclass
class Rewriting:
    """All that is known when the graph is built."""

    normal: fx.GraphModule
    analysis: Analysis
    regions: list[Region]
    guard: GuardInputs
    config: TomaConfig
    judge: Judge
    scopes: Scopes
    told: Outside
    runs: bool = True

    def run(self, pace: Pace) -> fx.GraphModule:
        """Hoist and rewrite; a region whose replay fails is dropped and the others planned again.

        Whatever the pace, regions are those that the replay on fewer tokens has proven.
        """
        usual = Pace(rests=pace.rests)
        while groups := plan(self.regions, self.config, self.judge, self.scopes.widen, self.told):
            try:
                with _no_tracebacks():
                    found = self._built(groups, usual)
                    return found if pace == usual else self._built(groups, pace)
            except RegionRefused as refusal:
                if not self.scopes.refuse(refusal.region, refusal.reason):
                    refusal.region.drop("refused", str(refusal))
        raise CannotRewrite("no region could be rewritten")

    def _built(self, groups: list[Group], pace: Pace) -> fx.GraphModule:
        stages = hoist(self.analysis, groups)
        return rewrite(self.normal, groups, stages, self.guard, self.config, pace, self.runs)


def guard_of(
    analysis: Analysis, groups: list[Group], config: TomaConfig, outside: Outside | None
) -> GuardInputs:
    """What the guard reads; nothing where no plan outlives a call, or the moment is told.

    Raises:
        CannotRewrite: a method that remembers would take every call for a picture's first.
    """
    method = METHODS[config.method]
    if not method.stateful:
        return GuardInputs(None)
    if outside is not None and outside.followed:
        return GuardInputs(None, outside=True)
    found = find_guard_inputs(analysis, groups, config)
    if found.timestep is not None or outside is None:
        note = found.note
    else:
        note = f"{found.note}. Blocks compiled apart are told by toma_fx.follow(model)"
        found = replace(found, note=note, outside=True)
    if method.remembers and found.timestep is None:
        raise CannotRewrite(f"{config.method} needs to know a picture's steps: {note}")
    return found


@contextmanager
def _no_tracebacks() -> Iterator[None]:
    """A replay that fails is a refusal; fake tensors would log it as an error all the same."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def judge_of(normal: fx.GraphModule, config: TomaConfig) -> Judge:
    """A measurement where autotuning was asked for, and there is a device to measure."""
    device = device_of(normal)
    if config.autotune and device.type != "meta":
        return Autotuner(config)
    return Predictor(find_profile(config.device, device), config.method)


def device_of(normal: fx.GraphModule) -> torch.device:
    """Where the model runs: most likely where its last tensor is made."""
    values = (node.meta.get("val") for node in reversed(normal.graph.nodes))
    return next((v.device for v in values if isinstance(v, torch.Tensor)), torch.device("cpu"))
