"""Pass 1: any traced module to one representation, pre-dispatch ATen with static sizes.

Why: Dynamo's graph calls Python functions and modules, each in many spellings. In pre-dispatch
ATen, the graph that `torch.export` makes, `linear`, `layer_norm`, `gelu` and
`scaled_dot_product_attention` are single nodes on every device.

Before: `torch._C._nn.linear(l_x_, l_w_)` on `[s0, s1, 64]`; after: `aten.linear.default(x, w)` on
`[2, 256, 64]`, with the placeholders, their order and their metadata kept.

Precondition: no data-dependent control flow; otherwise the tracing error becomes a refusal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensor,
    FakeTensorMode,
)
from torch.fx import traceback
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, free_unbacked_symbols

from toma_fx.errors import CannotRewrite
from toma_fx.passes.graph.metadata import keep_metadata
from toma_fx.passes.graph.nodes import is_getitem, is_view, writes
from toma_fx.passes.normalize.exchanges import unflatten_exchanges
from toma_fx.passes.normalize.fresh_writes import fresh_writes_to_values
from toma_fx.passes.normalize.gathers import unflatten_gathers
from toma_fx.passes.normalize.idle_autocast import drop_idle_autocast
from toma_fx.passes.normalize.interpret import Specialised, Tracing
from toma_fx.passes.normalize.no_ops import drop_no_ops
from toma_fx.passes.normalize.wrapped import is_wrapped, refuse_wrapped_activations, stand_in

# What tracing raises where an operation needs a number that is still symbolic.
_SYMBOLIC = (GuardOnDataDependentSymNode, DataDependentOutputException)


def normalize(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> fx.GraphModule:
    """Trace `gm` into a new pre-dispatch ATen graph module; `gm` stays as it is.

    Args:
        gm: a Dynamo graph, an exported program's graph, or any FX graph module.
        example_inputs: real or fake tensors and numbers, one per placeholder. Symbolic sizes
            are specialised, which adds a guard for each: another size compiles anew.

    Raises:
        CannotRewrite: the graph cannot be traced.
    """
    mode = detect_fake_mode(example_inputs) or FakeTensorMode(allow_non_fake_inputs=True)
    static = [_static(value, mode) for value in example_inputs]
    try:
        traced = _trace(Tracing(gm), static)
    except _SYMBOLIC:
        # Only then: a number that changes at every call would compile anew at every call.
        try:
            traced = _trace(Specialised(gm), static)
        except _SYMBOLIC as error:
            raise CannotRewrite(f"data-dependent control flow: {type(error).__name__}") from error
    _refuse_unknown_sizes(traced)
    drop_idle_autocast(traced)
    _drop_unread_writes(traced)
    fresh_writes_to_values(traced, mode)
    drop_no_ops(traced)
    unflatten_exchanges(traced)
    unflatten_gathers(traced)
    _refuse_unknown_constants(traced)
    refuse_wrapped_activations(traced, example_inputs)
    keep_metadata(gm, traced)
    return traced


def _trace(interpreter: fx.Interpreter, inputs: Sequence[Any]) -> fx.GraphModule:
    try:
        with traceback.preserve_node_meta(), torch.no_grad():
            return make_fx(
                interpreter.run,
                pre_dispatch=True,
                tracing_mode="fake",
                _allow_non_fake_inputs=True,
            )(*inputs)
    except _SYMBOLIC:
        raise
    except Exception as error:
        first = str(error).splitlines()[0] if str(error) else ""
        raise CannotRewrite(f"tracing to ATen failed: {type(error).__name__}: {first}") from error


def _static(value: Any, mode: FakeTensorMode) -> Any:
    if isinstance(value, torch.SymInt):
        return int(value)
    if not isinstance(value, torch.Tensor):
        return value
    if is_wrapped(value):
        return stand_in(value, mode)
    if not isinstance(value, FakeTensor):
        return mode.from_tensor(value, static_shapes=True)
    if not value._has_symbolic_sizes_strides:
        return value
    sizes = [int(size) for size in value.shape]
    strides = [int(stride) for stride in value.stride()]
    with value.fake_mode:
        return torch.empty_strided(sizes, strides, dtype=value.dtype, device=value.device)


def _drop_unread_writes(gm: fx.GraphModule) -> None:
    """Remove writes into tensors that nobody reads: what is left of a mask that was not needed."""
    gm.graph.eliminate_dead_code()
    for node in reversed(gm.graph.nodes):
        if not writes(node) or node.users or not isinstance(node.args[0], fx.Node):
            continue
        written = node.args[0]
        part = is_view(written) or is_getitem(written)  # others may see what it shows
        fresh = written.op == "call_function" and not part and not writes(written)
        if fresh and _only_for(node, written):
            gm.graph.erase_node(node)


def _only_for(write: fx.Node, written: fx.Node) -> bool:
    """Whether everything that reads a tensor ends in one write."""
    waiting = [written]
    while waiting:
        for user in waiting.pop().users:
            if user is write:
                continue
            if user.op == "output" or writes(user):
                return False
            waiting.append(user)
    return True


def _refuse_unknown_sizes(gm: fx.GraphModule) -> None:
    """A tensor whose size is a result of the graph (`nonzero`, a boolean index) has no layout."""
    for node in gm.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and free_unbacked_symbols(value):
            raise CannotRewrite(
                "a size depends on data: without fullgraph=True the graph breaks there, and what "
                "lies behind can be merged",
                node,
            )


def _refuse_unknown_constants(gm: fx.GraphModule) -> None:
    """Tensors that tracing lost sight of (under `vmap`) become constants without values."""
    for node in gm.graph.find_nodes(op="get_attr"):
        if isinstance(getattr(gm, node.target, None), FakeTensor):
            flex = any("flex_attention" in str(other.target) for other in gm.graph.nodes)
            what = "flex_attention with a score function or a mask" if flex else "vmap"
            raise CannotRewrite(f"tracing cannot follow {what}")
