"""Before pass 1: numbers of the caller that are data are traced as tensors.

Why: what Dynamo sees change, it hands over as a symbol. Whole ones are sizes here and become
static, and floats are static to whatever cannot trace them; a timestep that is a number would then
compile anew at every step.

Before: `torch.tensor([s / 1000])`, where `s` is a symbol; after: `s` is a tensor without
dimensions, int64 or float64, and so is all that is made of it.

Precondition: the number is only made into tensors, with arithmetic on the way; one that shapes a
tensor, or configures an operation, stays what it is.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import detect_fake_mode

_INTO_TENSORS = (torch.tensor, torch._refs.tensor)
_ARITHMETIC = (
    operator.add,
    operator.sub,
    operator.mul,
    operator.neg,
    operator.truediv,
    torch.sym_float,
)


def numbers_as_tensors(
    gm: fx.GraphModule, example_inputs: Sequence[Any]
) -> tuple[list[Any], tuple[int, ...]]:
    """The inputs with tensors for whole numbers that are data, and the places of those."""
    inputs = list(example_inputs)
    placeholders = gm.graph.find_nodes(op="placeholder")
    places = tuple(
        place
        for place, node in enumerate(placeholders)
        if isinstance(inputs[place], torch.SymInt) and _is_data(node)
    )
    mode = detect_fake_mode(inputs)
    for place in places if mode is not None else ():
        inputs[place] = mode.from_tensor(torch.empty((), dtype=torch.int64), static_shapes=True)
    return inputs, places


def taking_numbers(compiled: Callable[..., Any], places: tuple[int, ...]) -> Callable[..., Any]:
    """A callable that takes numbers at some places, where `compiled` takes tensors."""
    if not places:
        return compiled

    def run(*args: Any) -> Any:
        given = list(args)
        for place in places:
            given[place] = torch.tensor(given[place], dtype=torch.int64)
        return compiled(*given)

    return run


class Numbers:
    """The nodes of a graph that stand for numbers, and have become tensors."""

    def __init__(self) -> None:
        self._nodes: set[fx.Node] = set()

    def follow(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """The tensor that a node makes of numbers; None where it does something else.

        Args:
            node: of Dynamo's graph.
            args: what it is called with.
            kwargs: likewise.
        """
        if not any(source in self._nodes for source in node.all_input_nodes):
            return None
        if node.target in _INTO_TENSORS:
            return _tensor(args[0], **kwargs)
        self._nodes.add(node)
        if node.target in (operator.truediv, torch.sym_float) or float in map(type, args):
            args = tuple(a.double() if isinstance(a, Tensor) else a for a in args)
        return args[0] if node.target is torch.sym_float else node.target(*args)

    def begin(self, node: fx.Node, run: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        """The result of a node; where that is a number of the caller, the tensor for it."""
        symbol = node.meta.get("example_value")
        if node.op == "placeholder" and isinstance(symbol, torch.SymInt):
            if isinstance(number := run(), Tensor):
                self._nodes.add(node)
            return number
        if node.target != "item" or not isinstance(symbol, torch.SymFloat) or not _is_data(node):
            return run()
        self._nodes.add(node)
        args[0].item_memo = symbol  # what Dynamo knows it by, so that it is not a new unknown
        # A product, which AOTAutograd knows to trace back to the tensor.
        return torch.ones((), dtype=torch.float64) * run()


def _is_data(node: fx.Node) -> bool:
    return bool(node.users) and all(
        user.target in _INTO_TENSORS or (user.target in _ARITHMETIC and _is_data(user))
        for user in node.users
    )


def _tensor(data: Any, dtype: torch.dtype | None = None, device: Any = None, **_: Any) -> Tensor:
    """`torch.tensor` of numbers, nested in lists, some of which are tensors already."""
    if isinstance(data, list | tuple):
        return torch.stack([_tensor(item, dtype, device) for item in data])
    if not isinstance(data, Tensor):
        return torch.tensor(data, dtype=dtype, device=device)
    default = torch.get_default_dtype() if data.is_floating_point() else torch.int64
    return data.to(device=device, dtype=dtype or default)
