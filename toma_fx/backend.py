"""The door for `torch.compile`: `backend=toma_backend`, or `backend="toma"` by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch._inductor.config
from torch import fx
from torch._dynamo.backends.registry import lookup_backend

from toma_fx import operations  # noqa: F401 - registers the operation that the graphs call
from toma_fx.config import TomaConfig, split_options
from toma_fx.errors import AutogradError, ConfigError
from toma_fx.passes import RewriteResult, run_passes
from toma_fx.report import Report
from toma_fx.reuse import PlanState

_last = Report()


def toma_backend(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: dict[str, Any] | None = None,
) -> Callable[..., Any]:
    """Compile a Dynamo graph with its attention and MLP regions on merged tokens.

    Args:
        gm: Dynamo's graph; not modified.
        example_inputs: one per placeholder, real or fake.
        mode: Inductor's, as in `torch.compile(mode=...)`; costs compile time.
        options: fields of `TomaConfig`, Inductor's options, and `inner_backend` (default
            `"inductor"`): the registered Dynamo backend that compiles the rewritten graph.

    Returns:
        A callable with the graph's signature. Where nothing can be merged it is the plain
        model's, after one warning that says why.

    Raises:
        ConfigError: an option is unknown or out of range.
        AutogradError: gradients are enabled and an input or parameter requires them.
    """
    config, others = split_options(options, ("inner_backend", *inductor_options()))
    inner = others.pop("inner_backend", "inductor")
    _refuse_autograd(example_inputs)
    result = rewrite(gm, example_inputs, config)
    remember(result.report)
    compiled = _compile(result.graph_module, example_inputs, inner, mode, others)
    if result.graph_module is gm:
        return compiled
    return PlanState(result.graph_module, example_inputs).guarded(compiled)


def plain_backend(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: dict[str, Any] | None = None,
) -> Callable[..., Any]:
    """Compile a Dynamo graph as `toma_backend` would, without merging anything."""
    others = dict(options or {})
    return _compile(gm, example_inputs, others.pop("inner_backend", "inductor"), mode, others)


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
    """The report of the latest compile in this process; empty before the first."""
    return _last


def remember(report: Report) -> None:
    """Keep a report as the latest, and warn of what it notes."""
    global _last
    _last = report
    if report.merged:
        for note in report.notes:
            warnings.warn(f"toma_fx: {note}", stacklevel=2)
    else:
        warnings.warn(f"toma_fx merged nothing; the plain model runs.\n{report}", stacklevel=2)


def _refuse_autograd(example_inputs: Sequence[Any]) -> None:
    if torch.is_grad_enabled() and any(
        isinstance(value, torch.Tensor) and value.requires_grad for value in example_inputs
    ):
        raise AutogradError(
            "token merging is for inference: call the model under torch.no_grad() or "
            "torch.inference_mode()"
        )


def inductor_options() -> list[str]:
    """Names of the options that Inductor knows."""
    known = torch._inductor.config.get_config_copy() if _copyable() else {}
    return [name.replace("-", "_") for name in known]


def _copyable() -> bool:
    return hasattr(torch._inductor.config, "get_config_copy")


def _compile(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    inner: str,
    mode: str | None,
    options: dict[str, Any],
) -> Callable[..., Any]:
    if inner == "inductor":
        from torch._inductor import list_mode_options
        from torch._inductor.compile_fx import compile_fx

        patches = {**(list_mode_options(mode) if mode else {}), **options}
        return compile_fx(gm, list(example_inputs), config_patches=patches or None)
    if mode or options:
        given = ", ".join(filter(None, (mode and "mode", *options)))
        raise ConfigError(f"{given} belong to Inductor, not to inner_backend={inner!r}")
    return lookup_backend(inner)(gm, list(example_inputs))
