"""A denoiser that is compiled in place, and the choice of the graph at each call."""

from __future__ import annotations

import warnings
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from toma_fx.arguments import Arguments, Call
from toma_fx.diffusers.graphs import (
    DENSE,
    MERGED,
    PAIRED,
    PLAIN,
    RESTING,
    Graph,
    Kind,
)
from toma_fx.diffusers.progress import Moment, Progress
from toma_fx.diffusers.recipe import Recipe
from toma_fx.errors import PipelineWarning
from toma_fx.owners import NothingRemembered
from toma_fx.reuse import begin
from toma_fx.streams import stream_here

# Denoisers whose pipelines run both halves of guidance as one batch, first the negative prompts.
# Others call twice, or have guidance as an input; pairing their items would mix pictures.
_BATCHES_GUIDANCE = ("UNet2DConditionModel", "SD3Transformer2DModel")
# Denoisers whose pipelines hand over a timestep that rises within a picture, `1 - t`.
_RISES = ("ZImageTransformer2DModel", "Lumina2Transformer2DModel", "LuminaNextDiT2DModel")


@dataclass(frozen=True)
class Member:
    """A pipeline that token merging is applied to, and how; None stands for the model itself."""

    pipeline: weakref.ref[Any] | None
    recipe: Recipe

    def is_of(self, pipeline: object) -> bool:
        return self.pipeline is not None and self.pipeline() is pipeline


class CompiledCall:
    """Stands where `nn.Module.__call__` looks for a compiled forward.

    The module itself stays as it is. Pipelines may share it; calls of one that was never given to
    `apply` are merged as the first that was.

    Args:
        model: the denoiser.
    """

    def __init__(self, model: nn.Module) -> None:
        self.graphs: list[tuple[Recipe, Graph]] = []
        self.members: list[Member] = []
        self._model = model
        self._arguments = Arguments(model)
        self._progress = Progress()
        self._pairs: dict[str, tuple[torch.Size, bool]] = {}  # by stream
        self._latest: dict[str, object] = {}  # the picture of the call before, by stream
        self._told = False
        # Also where the model goes without `remove`; not at the end of the process.
        weakref.finalize(self, _free, self.graphs).atexit = False

    @property
    def alone(self) -> bool:
        """Whether it was applied to the model itself."""
        return any(member.pipeline is None for member in self.members)

    @property
    def pipelines(self) -> list[Any]:
        """Those it is applied to that still exist."""
        return self._progress.pipelines

    def applies_to(self, pipeline: object) -> bool:
        return self.alone or any(member.is_of(pipeline) for member in self.members)

    def add(self, pipeline: object | None, recipe: Recipe) -> None:
        """Merge for a pipeline, or for the model itself, in place of what it had before."""
        if type(self._model).__name__ in _RISES:
            recipe = recipe.rising()
        kept = [m for m in self.members if m.pipeline is not None and not m.is_of(pipeline)]
        if pipeline is None:
            self.members = [Member(None, recipe)]
            self._progress = Progress()
        else:
            self.members = [*kept, Member(weakref.ref(pipeline), recipe)]
            self._progress.drop(pipeline)
            self._progress.add(pipeline)
        self._free_unused()

    def drop(self, pipeline: object) -> bool:
        """Merge no longer for a pipeline; whether one is left that it is applied to."""
        self.members = [member for member in self.members if not member.is_of(pipeline)]
        self._progress.drop(pipeline)
        if self.pipelines:
            self._free_unused()
        return bool(self.pipelines)

    def free(self) -> None:
        """Drop all that was compiled."""
        _free(self.graphs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():  # part of another compile or export
            return self._model._call_impl(*args, **kwargs)
        call = self._arguments.with_tensors((args, kwargs))
        timestep, latents = self._arguments.timestep(call), self._arguments.latents(call)
        stream = stream_here(self._model)
        moment = Moment() if self.alone else self._progress.follow(timestep, stream)
        if moment.begins:
            self._begin()
        recipe = self._recipe_of(moment.pipeline)
        kind = self._kind(recipe, moment, latents, kwargs)
        call = self._for_dynamo(call, kind)
        self._latest[stream] = moment.picture
        try:
            return self._run(recipe, kind, call, moment.step)
        except NothingRemembered:
            return self._run(recipe, MERGED, call, moment.step)

    def _for_dynamo(self, call: Call, kind: Kind) -> Call:
        return self._arguments.for_dynamo(call, merges=kind != PLAIN)

    def _begin(self) -> None:
        begin(self._model)
        self._pairs.pop(stream_here(self._model), None)
        for _, graph in self.graphs:
            graph.begin()

    def _recipe_of(self, pipeline: object | None) -> Recipe:
        mine = [m.recipe for m in self.members if pipeline is not None and m.is_of(pipeline)]
        return mine[0] if mine else self.members[0].recipe

    def _kind(self, recipe: Recipe, moment: Moment, latents: Any, kwargs: dict[str, Any]) -> Kind:
        start, end = recipe.merge_steps
        if moment.share is not None and not start <= moment.share < end:
            return PLAIN
        if moment.share is None and recipe.needs_steps:
            self._tell_unknown(recipe.needs_steps)
        if recipe.remembers:  # for each item by itself
            return self._pace(recipe, moment)
        pairs = recipe.config.cfg_pairs is None and self._in_pairs(moment, latents, kwargs)
        return PAIRED if pairs else MERGED

    def _pace(self, recipe: Recipe, moment: Moment) -> Kind:
        """A step that should rest computes where another picture was in between."""
        if moment.step is None or moment.steps is None:
            return MERGED
        if recipe.is_dense(moment.step, moment.steps):
            return DENSE
        goes_on = moment.picture is self._latest.get(stream_here(self._model))
        return RESTING if recipe.rests(moment.step) and goes_on else MERGED

    def _in_pairs(self, moment: Moment, latents: Any, kwargs: dict[str, Any]) -> bool:
        """Whether the batch of this call is two halves of guidance."""
        if (
            type(self._model).__name__ not in _BATCHES_GUIDANCE
            or not isinstance(latents, Tensor)
            or latents.shape[0] % 2
            or kwargs.get("skip_layers") is not None  # the positive half alone, again
        ):
            return False
        if moment.pipeline is not None:
            guided = bool(getattr(moment.pipeline, "do_classifier_free_guidance", False))
            # This adds a third part to the batch.
            disturbed = getattr(moment.pipeline, "do_perturbed_attention_guidance", False)
            return guided and not disturbed
        return moment.step is not None and self._halves_are_equal(latents)

    def _halves_are_equal(self, latents: Tensor) -> bool:
        """As guidance makes them; read once a picture, for pipelines that nobody knows."""
        stream = stream_here(self._model)
        size, equal = self._pairs.get(stream, (None, False))
        if size != latents.shape:
            equal = torch.equal(*latents.chunk(2))
            self._pairs[stream] = latents.shape, equal
        return equal

    def _run(self, recipe: Recipe, kind: Kind, call: Call, step: int | None) -> Any:
        """Run a call, and count it: by the plain graph behind the limit of another.

        Raises:
            NothingRemembered: the graph computes nothing, and cannot serve this call.
        """
        latents = self._arguments.latents(call)
        graph = self._graph(recipe, kind)
        variant = graph.variant(call, latents)
        tally = variant.tally if variant is not None else graph.refused
        if variant is None:
            variant = self._graph(recipe, PLAIN).variant(call, latents)
            assert variant is not None  # one for all sizes
        result = variant(self._model, call)
        tally.count(step, latents)
        return result

    def _graph(self, recipe: Recipe, kind: Kind) -> Graph:
        mine = [graph for known, graph in self.graphs if known == recipe]
        for graph in mine:
            if graph.kind == kind:
                return graph
        self.graphs.append((recipe, self._new_graph(kind, recipe, mine[0] if mine else None)))
        return self.graphs[-1][1]

    def _new_graph(self, kind: Kind, recipe: Recipe, like: Graph | None) -> Graph:
        return Graph(kind, recipe, like.shared if like is not None else None)

    def _free_unused(self) -> None:
        used = [member.recipe for member in self.members]
        for recipe, graph in list(self.graphs):
            if recipe not in used:
                graph.free()
        self.graphs[:] = [entry for entry in self.graphs if entry[0] in used]

    def _tell_unknown(self, option: str) -> None:
        if not self._told:
            self._told = True
            warnings.warn(
                f"toma_fx: a pipeline that apply was not given calls this "
                f"{type(self._model).__name__}, and {option} cannot follow it: every step is "
                "merged. Give apply that pipeline as well",
                PipelineWarning,
                stacklevel=2,
            )


def _free(graphs: list[tuple[Recipe, Graph]]) -> None:
    for _, graph in graphs:
        graph.free()
    graphs.clear()
