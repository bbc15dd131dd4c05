"""What would be merged, without running the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch._dynamo.exc import BackendCompilerFailed

from toma_fx.backend import rewrite
from toma_fx.config import TomaConfig
from toma_fx.dynamo import forget, private_copy
from toma_fx.errors import TomaError
from toma_fx.report import Report


def explain(
    model: torch.nn.Module, *args: Any, config: TomaConfig | None = None, **kwargs: Any
) -> Report:
    """Trace a model and run the passes, as `torch.compile(model, backend="toma")` would.

    No operation of the model is executed: its graphs return empty tensors of the right shapes.
    Works on the meta device, so that a full-size model needs no memory. Costs the tracing
    (seconds), no compilation, and leaves the compile caches of the model as they are.

    Args:
        model: any module in eval mode.
        *args: the arguments of a call; their shapes decide, their values do not.
        config: defaults to `TomaConfig()`.
        **kwargs: likewise.

    Returns:
        The report over all graphs of the model; one graph where there is no graph break.

    Raises:
        ConfigError: no profile has the name `config.device`.
    """
    report = Report()
    config = config or TomaConfig()

    def collect(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        result = rewrite(gm, example_inputs, config)
        report.extend(result.report)
        return _shapes_only(result.graph_module)

    call = private_copy(_call, "toma_explain")
    try:
        with torch.no_grad():
            torch.compile(call, backend=collect)(model, args, kwargs)
    except BackendCompilerFailed as error:
        if isinstance(error.inner_exception, TomaError):
            raise error.inner_exception from None
        raise
    finally:
        forget(call)
    return report


def _call(self: Any, args: Any, kwargs: Any) -> Any:
    return self(*args, **kwargs)


def _shapes_only(gm: fx.GraphModule) -> Callable[..., Any]:
    output = next(iter(gm.graph.find_nodes(op="output")))
    results = [_value(item) for item in output.args[0]]

    def run(*args: Any) -> list[Any]:
        return [_empty(value) for value in results]

    return run


def _value(item: Any) -> Any:
    if not isinstance(item, fx.Node):
        return item
    return item.meta.get("val", item.meta.get("example_value"))


def _empty(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    sizes, strides = ([int(n) for n in numbers] for numbers in (value.shape, value.stride()))
    found = torch.empty_strided(sizes, strides, dtype=value.dtype, device=value.device)
    # What a model may branch on between two graphs is the same at every call.
    return found if value.dtype.is_floating_point or value.dtype.is_complex else found.zero_()
