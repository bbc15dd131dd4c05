"""The graphs of a denoiser, each with compiled code and a count of its own.

Dynamo counts what it compiled by function, and models of diffusers share theirs: the ninth graph of
a process would be none. Here every size of a merged graph is a function of its own; sizes are
static in it, so that nothing would be shared anyway. Batches share one: Dynamo makes their size a
symbol when it has seen a second one.
"""

from __future__ import annotations

import functools
import inspect
import warnings
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import fx, nn

from toma_fx.arguments import Call, tensors
from toma_fx.backend import Paced, compile_merged, tell_limit
from toma_fx.compiler import Compiler
from toma_fx.config import TomaConfig
from toma_fx.diffusers.recipe import Recipe, changed
from toma_fx.dynamo import forget, handed_on, own_count, private_copy
from toma_fx.errors import AutogradError, ConfigError, PlainModelWarning
from toma_fx.limits import Limit, listen
from toma_fx.owners import PlanState
from toma_fx.passes.methods.pace import Computes, Pace
from toma_fx.report import Report

Kind = str
MERGED, PAIRED, RESTING, DENSE, PLAIN = KINDS = (
    *("merged", "merged in pairs", "resting", "dense", "plain"),
)
_COMPUTES = {MERGED: Computes.SHARE, RESTING: Computes.NONE, DENSE: Computes.ALL}
Shared = dict[Hashable, list[PlanState]]
"""What graphs of one denoiser remember, by the sizes of its inputs, and by class where its blocks
are compiled apart."""


class Graph:
    """One way to run a denoiser: merged, also with guidance in pairs, resting, dense, or plain.

    Args:
        kind: one of `KINDS`.
        recipe: how it is compiled.
        shared: with the recipe's other graphs.

    Attributes:
        limit: of sizes, once it is met.
        refused: calls of further sizes, which run the plain graph.
    """

    def __init__(self, kind: Kind, recipe: Recipe, shared: Shared | None = None) -> None:
        self.kind = kind
        self.shared: Shared = {} if shared is None else shared
        self.limit: Limit | None = None
        self.refused = Tally()
        self._recipe = recipe
        self._variants: dict[Hashable, Variant] = {}

    @property
    def variants(self) -> list[Variant]:
        """In the order of their first calls."""
        return list(self._variants.values())

    def variant(self, call: Call, latents: Any) -> Variant | None:
        """What runs a call of these sizes; None behind the limit."""
        key = self._key(call)
        if key not in self._variants:
            if len(self._variants) >= self._recipe.limit:
                self._refuse(latents)
                return None
            self._variants[key] = self._new_variant(key)
        return self._variants[key]

    def _key(self, call: Call) -> Hashable:
        """What tells sizes apart, but for the batch: Dynamo does that."""
        if self.kind == PLAIN:
            return None
        return tuple((tensor.dim(), *tensor.shape[1:]) for tensor in tensors(call))

    def _new_variant(self, key: Hashable) -> Variant:
        return Variant(self.kind, self._recipe, self.shared.setdefault(key, []))

    def begin(self) -> None:
        """A picture begins."""
        for tally in (self.refused, *(variant.tally for variant in self.variants)):
            tally.begin()

    def free(self) -> None:
        """Drop all that was compiled, and the plans in it."""
        for variant in self._variants.values():
            variant.free()
        self._variants.clear()
        self.shared.clear()

    def _refuse(self, latents: Any) -> None:
        if self.limit is None:
            cause = f"latents of {size_text(latents)}, or another of its inputs, have a new size"
            self.limit = Limit("recompile_limit", self._recipe.limit, "this denoiser", cause)
            tell_limit(self.limit, _advice(self._recipe))


class Tally:
    """Calls of a graph.

    Attributes:
        sizes: of their latents.
        steps: of the latest picture.
    """

    def __init__(self) -> None:
        self.sizes: list[tuple[int, ...]] = []
        self.steps = 0
        self._step: int | None = None

    def count(self, step: int | None, latents: Any) -> None:
        """A call of this step; without one, calls are counted."""
        size = tuple(getattr(latents, "shape", ()))
        if size not in self.sizes:
            self.sizes.append(size)
        self.steps += step is None or step != self._step
        self._step = step

    def begin(self) -> None:
        """A picture begins."""
        self.steps, self._step = 0, None


class Variant:
    """A graph for inputs of certain sizes; the plain graph has one for all.

    Attributes:
        tally: of its calls.
        reports: of what was compiled: none yet, or several where the graph breaks.
        limit: that Dynamo met with it, so that some calls run the plain model.
        bypassed: whether the latest call ran none of the compiled code.
    """

    def __init__(self, kind: Kind, recipe: Recipe, shared: list[PlanState]) -> None:
        self.kind = kind
        self.recipe = recipe
        self.tally = Tally()
        self.reports: list[Report] = []
        self.limit: Limit | None = None
        self.bypassed = False
        self._runs = 0
        self._told = False
        self._compiled: weakref.WeakSet[_Compiled] = weakref.WeakSet()
        self._config = recipe.config if kind != PLAIN else None
        if kind == PAIRED:
            self._config = changed(recipe.config, cfg_pairs=True)
        self._function, self._run = self._compile(kind, self._config, shared)

    def _compile(
        self,
        kind: Kind,
        config: TomaConfig | None,
        shared: list[PlanState],
        calls: Callable[..., Any] | None = None,
    ) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """A function that calls a module, and what `torch.compile` makes of it."""
        recipe = self.recipe
        function = private_copy(calls or call_with_hooks, f"toma_{kind.replace(' ', '_')}")
        # Dynamo keeps every backend that it was given: this one keeps nothing alive.
        paced = None
        if recipe.remembers and config is not None:
            paced = Paced(Pace(_COMPUTES[kind], recipe.rests_at_all), shared)
        backend = functools.partial(_compile, weakref.ref(self), config, recipe.compiler, paced)
        return function, torch.compile(
            function, backend=backend, **recipe.how, **own_count(recipe.limit)
        )

    def __call__(self, model: nn.Module, call: Call) -> Any:
        before = self._runs
        result = self._run(model, *call[0], **call[1])
        self._tell_bypassed(self._runs == before)
        return result

    def _tell_bypassed(self, bypassed: bool) -> None:
        self.bypassed = bypassed
        if bypassed and self.limit is None and not self._told:
            self._told = True
            warnings.warn(f"toma_fx: the plain model runs: {NOT_RUN}", PlainModelWarning, 3)

    def keep(self, compiled: Callable[..., Any], report: Report | None) -> Callable[..., Any]:
        """What Dynamo gets in place of `compiled`: it can be freed, and its calls are counted."""
        if report is not None:
            self.reports.append(report)
        held = _Compiled(compiled)
        self._compiled.add(held)
        me = weakref.ref(self)

        def run(*args: Any) -> Any:
            variant = me()
            if variant is not None:
                variant._runs += 1
            return held.call(*args)

        return run

    def free(self) -> None:
        # Dynamo's entries for functions that others share, behind graph breaks, stay with it.
        for held in list(self._compiled):
            held.call = _freed
        forget(self._function)


class _Compiled:
    """Compiled code that can be let go while Dynamo still refers to it."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call


NOT_RUN = "compiled code is switched off (TORCHDYNAMO_DISABLE, or a stance of torch.compiler)"


def size_text(latents: Any) -> str:
    """`2×4×128×128`."""
    size = latents if isinstance(latents, tuple) else getattr(latents, "shape", ())
    return "×".join(str(int(side)) for side in size)


def call_with_hooks(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Call a module. Paths of modules begin behind the name `self`."""
    return self._call_impl(*args, **kwargs)


def _compile(
    variant: weakref.ref[Variant],
    config: TomaConfig | None,
    compiler: Compiler,
    paced: Paced | None,
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
) -> Callable[..., Any]:
    """The backend of a variant; without a configuration, nothing is merged."""
    report = None
    try:
        if config is None:
            compiled = compiler(gm, example_inputs)
        else:
            compiled, report = compile_merged(gm, example_inputs, config, compiler, paced)
    except (ConfigError, AutogradError) as error:
        raise handed_on(error, inspect.currentframe()) from None
    found = variant()
    return compiled if found is None else found.keep(compiled, report)


def _met(limit: Limit, variant: weakref.ref[Variant], *_: Any) -> None:
    found = variant()
    if found is not None:
        found.limit = limit
        tell_limit(limit, _advice(found.recipe))


listen(_compile, _met)


def _advice(recipe: Recipe) -> str:
    return f"raise it by apply(..., recompile_limit={4 * recipe.limit})"


def _freed(*_: Any) -> Any:
    raise RuntimeError("this graph was removed while it ran")
