"""The door for `torch.compile`: `backend=toma_backend`, or `backend="toma"` by name."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from toma_fx import operations  # noqa: F401 - registers the operation that the graphs call
from toma_fx.compiler import Compiler, choose
from toma_fx.config import TomaConfig
from toma_fx.dynamo import handed_on
from toma_fx.errors import (
    AutogradError,
    ConfigError,
    LimitWarning,
    PlainModelWarning,
    TomaWarning,
)
from toma_fx.following import calls, tell_unfollowed
from toma_fx.limits import Limit, listen, shared_advice
from toma_fx.owners import NotFollowed, PlanState
from toma_fx.passes import RewriteResult, run_passes
from toma_fx.passes.graph.outside import Outside
from toma_fx.passes.methods import METHODS
from toma_fx.passes.methods.pace import USUAL, Computes, Pace
from toma_fx.passes.normalize.numbers import numbers_as_tensors, taking_numbers
from toma_fx.passes.rewrite.batched import Batched
from toma_fx.passes.rewrite.lift import Lifted, lift
from toma_fx.probe import probing
from toma_fx.report import Report

_last = Report()


def toma_backend(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: dict[str, Any] | None = None,
) -> Callable[..., Any]:
    """Compile a Dynamo graph with its attention and MLP regions on merged tokens.

    Dynamo compiles no more than `torch._dynamo.config.recompile_limit` graphs of one function,
    and diffusers' models share theirs. Where that makes the plain model run, a `LimitWarning`
    says so.

    Args:
        gm: Dynamo's graph; not modified.
        example_inputs: one per placeholder, real or fake.
        mode: Inductor's, as in `torch.compile(mode=...)`; costs compile time.
        options: fields of `TomaConfig`, Inductor's options, and `inner_backend` (default
            `"inductor"`): the registered Dynamo backend that compiles the rewritten graph.

    Where it is the default of `torch.compile` (`torch.compiler.set_default_backend("toma")`),
    graphs without a denoiser's step, text encoders and decoders, go to the inner backend as they
    are and silently; `torch._dynamo.utils.counters["toma_fx"]["graphs_passed_on"]` counts them.

    Returns:
        A callable with the graph's signature. Where nothing can be merged it is the plain
        model's, after one warning that says why.

    Raises:
        ConfigError: an option is unknown or out of range.
        AutogradError: gradients are enabled and an input or parameter requires them.
    """
    try:
        config, compiler = choose(mode, options)
        return compile_merged(gm, example_inputs, config, compiler, everywhere=_is_default())[0]
    except (ConfigError, AutogradError) as error:
        raise handed_on(error, inspect.currentframe()) from None


def compile_merged(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    config: TomaConfig,
    compiler: Compiler,
    paced: Paced | None = None,
    everywhere: bool = False,
) -> tuple[Callable[..., Any], Report]:
    """Rewrite a graph and compile it; the report says what it merges.

    Args:
        gm: Dynamo's graph; not modified.
        example_inputs: one per placeholder.
        config: how it is merged.
        compiler: what compiles the rewritten graph.
        paced: where it shares its memory with graphs of another pace.
        everywhere: whether graphs come of all models there are, not of denoisers alone.
    """
    _refuse_autograd(example_inputs)
    inputs, numbers = numbers_as_tensors(gm, example_inputs)
    pace = paced.pace if paced is not None else USUAL
    outside = _outside(gm, inputs)
    how = {"denoisers_only": everywhere, "any_batch": True}
    with probing(inputs if compiler.inner == "inductor" else ()):
        result = run_passes(gm, inputs, config, pace, outside, **how)
    if not result.passed_on:
        remember(result.report)
    merged = result.graph_module
    if merged is gm:
        return compiler(gm, example_inputs), result.report
    lifted = lift(merged)
    state = (paced or Paced()).state(lifted, merged, config, result.batched)
    compiled = compiler(merged, [*inputs, *lifted.examples])
    shared = paced.sharing(result) if paced is not None else {}
    guarded = state.guarded(compiled, lifted, inputs, result.batched, **shared)
    if METHODS[config.method].remembers and lifted.moment:
        return _plain_unfollowed(taking_numbers(guarded, numbers), gm), result.report
    return taking_numbers(guarded, numbers), result.report


def _is_default() -> bool:
    """Whether `torch.compile` calls that name no backend, whatever they compile, come here."""
    known = getattr(torch.compiler, "get_default_backend", lambda: None)  # from torch 2.13 on
    backend = known()
    return backend == "toma" or getattr(backend, "func", backend) is toma_backend


def _outside(gm: fx.GraphModule, inputs: Sequence[Any]) -> Outside:
    """What a followed model tells of its call, where the graph is a part of one that runs."""
    held = [value for value in inputs if isinstance(value, nn.Parameter)]
    parameters = {id(parameter) for parameter in (*held, *gm.parameters())}
    mine = (call for call in calls() if call.following.place(parameters) is not None)
    call = next(mine, None)
    return Outside() if call is None else call.outside()


def _plain_unfollowed(compiled: Callable[..., Any], gm: fx.GraphModule) -> Callable[..., Any]:
    """The compiled graph, and the plain one where nobody tells the step any longer."""
    told = False

    def run(*args: Any) -> Any:
        nonlocal told
        try:
            return compiled(*args)
        except NotFollowed:
            if not told:
                told = True
                tell_unfollowed()
            return gm(*args)

    return run


@dataclass
class Paced:
    """One of several graphs of a model that share their memory.

    Attributes:
        pace: what it computes.
        shared: states of all of them.
        mine: states that this one uses, one for each part of a model whose graph breaks.
    """

    pace: Pace = USUAL
    shared: list[PlanState] = field(default_factory=list)
    mine: list[PlanState] = field(default_factory=list)

    def state(
        self,
        lifted: Lifted,
        merged: fx.GraphModule,
        config: TomaConfig,
        batched: Batched | None,
    ) -> PlanState:
        """What a rewritten graph keeps: with another graph, where that keeps the same."""
        for state in self.shared:
            if state not in self.mine and state.fits(lifted, batched):
                if batched is not None or not state.serves_batches:  # else another graph may too
                    self.mine.append(state)
                return state
        state = PlanState(lifted, merged.parameters(), config, batched)
        self.shared.append(state)
        self.mine.append(state)
        return state

    def sharing(self, result: RewriteResult) -> dict[str, Any]:
        """Arguments of `PlanState.guarded`."""
        told_apart = result.told_apart if self.pace.rests else None
        return {"told_apart": told_apart, "computes": self.pace.computes is not Computes.NONE}


def rewrite(
    graph_module: fx.GraphModule, example_inputs: Sequence[Any], config: TomaConfig | None = None
) -> RewriteResult:
    """The passes alone, for other compiler stacks: graph in, graph out.

    Args:
        graph_module: any FX graph module; not modified.
        example_inputs: real or fake tensors, one per placeholder.
        config: defaults to `TomaConfig()`.

    Returns:
        The rewritten graph (pre-dispatch ATen, plans as buffers), or `graph_module` itself where
        nothing is merged, and the report.
    """
    return run_passes(graph_module, example_inputs, config or TomaConfig())


def last_report() -> Report:
    """The report of the latest compile in this process; empty before the first.

    Where Dynamo compiled no more and the plain model runs instead, it says that.
    """
    return _last


def remember(report: Report) -> None:
    """Keep a report as the latest, and warn of what it notes."""
    global _last
    _last = report
    if report.merged:
        for note in report.notes:
            warnings.warn(f"toma_fx: {note}", TomaWarning, stacklevel=2)
    else:
        text = f"toma_fx merged nothing; the plain model runs.\n{report}"
        warnings.warn(text, PlainModelWarning, stacklevel=2)


def tell_limit(limit: Limit, advice: str) -> None:
    """Some calls run the plain model: keep that as the latest report, and warn."""
    global _last
    _last = Report(plain=limit.reason)
    text = f"toma_fx: {limit.message(advice)}"
    warnings.warn(LimitWarning(text, limit.name, limit.value, limit.cause), stacklevel=2)


def _met(limit: Limit) -> None:
    tell_limit(limit, shared_advice(limit))


listen(toma_backend, _met)


def _refuse_autograd(example_inputs: Sequence[Any]) -> None:
    if torch.is_grad_enabled() and any(
        isinstance(value, torch.Tensor) and value.requires_grad for value in example_inputs
    ):
        raise AutogradError(
            "token merging is for inference: call the model under torch.no_grad() or "
            "torch.inference_mode()"
        )
