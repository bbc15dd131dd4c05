"""Weights that are tensor subclasses, as quantised ones are (torchao's int8 and float8).

Why: a subclass brings its own `linear`, made of many operations in which no rule would know a
projection. So the passes trace a plain stand-in, where it is one node on one weight, and the
merged graph calls `F.linear` again, for which subclasses define themselves
(`torchao/utils.py`: `implements_torch_function`).

Before: a graph on the plain stand-in `w`, `aten.linear.default(x, w)`; after: `F.linear(x, w)`.

Precondition: a subclass is nothing but the weight of linears. What it does elsewhere (a DTensor's
collectives) is not in the graph, so anything else is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from toma_fx.errors import CannotRewrite
from toma_fx.passes.graph.nodes import aten


def is_wrapped(value: Any) -> bool:
    """Whether a value is a tensor subclass that wraps other tensors."""
    return isinstance(value, torch.Tensor) and is_traceable_wrapper_subclass(value)


def stand_in(value: torch.Tensor, mode: FakeTensorMode) -> torch.Tensor:
    """A plain fake tensor of the same shape, strides, dtype and device."""
    sizes, strides = [int(n) for n in value.shape], [int(n) for n in value.stride()]
    with mode:
        return torch.empty_strided(sizes, strides, dtype=value.dtype, device=value.device)


def refuse_wrapped_activations(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> None:
    """Raise where a wrapped input is more than the weight of linears.

    Raises:
        CannotRewrite: naming the subclass and the node.
    """
    for weight, value in _wrapped(gm, example_inputs):
        for user in weight.users:
            if not _is_weight(weight, user):
                kind = type(value).__name__
                raise CannotRewrite(f"a {kind} is more than the weight of a linear, at {user.name}")


def call_own_linears(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> None:
    """Give every wrapped weight its own `linear` back, in place."""
    for weight, _ in _wrapped(gm, example_inputs):
        for user in weight.users:
            user.target = F.linear
    gm.recompile()


def _wrapped(
    gm: fx.GraphModule, example_inputs: Sequence[Any]
) -> Iterator[tuple[fx.Node, torch.Tensor]]:
    nodes = gm.graph.find_nodes(op="placeholder")
    return ((n, v) for n, v in zip(nodes, example_inputs, strict=True) if is_wrapped(v))


def _is_weight(weight: fx.Node, user: fx.Node) -> bool:
    linear = user.target is aten.linear.default and user.args[1] is weight
    return linear and user.all_input_nodes.count(weight) == 1 and user.args[0] is not weight
