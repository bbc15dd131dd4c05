"""Before pass 1: the number of items of a call, where Dynamo left it symbolic.

Why: a merged graph knows its tokens, but nothing that it does mixes items: one graph can serve
batches of every size. The passes read static sizes all the same, so they see two batches, one after
the other, and what differs between the two graphs is a matter of the batch (`rewrite.batched`).

Before: inputs of `[s0, 256, 64]`; after: the same of `[2, 256, 64]`, with no guard on `s0`.

Precondition: the symbol is the first axis of inputs, and of no other axis.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import SymInt, Tensor, fx
from torch.fx.experimental.symbolic_shapes import free_symbols, free_unbacked_symbols

from toma_fx.passes.normalize.wrapped import is_wrapped

# To a second batch: even, so that pairs stay pairs, and twice a prime, so that a size which grows
# by rounded parts of the batch does not look as if it grew evenly.
_FURTHER = (1018, 202, 46, 26, 10, 6, 2)


@dataclass(frozen=True)
class Batch:
    """A symbol for the number of items.

    Attributes:
        symbol: of the sizes.
        size: what it stands for where the graph is compiled.
        other: another size that fulfils all that is known of it.
        place: of an input whose first axis it is.
    """

    symbol: sympy.Symbol
    size: int
    other: int
    place: int

    def of(self, inputs: Sequence[Any]) -> SymInt:
        """The size itself, from the inputs of the graph."""
        size: SymInt = inputs[self.place].shape[0]
        return size


def find_batch(inputs: Sequence[Any]) -> Batch | None:
    """The batch of a graph's inputs; None where it is static, or one symbol with other sizes."""
    firsts: dict[sympy.Symbol, list[int]] = {}
    elsewhere: set[sympy.Symbol] = set()
    for place, value in enumerate(inputs):
        if not _is_symbolic(value) or value.dim() == 0:
            continue
        first, *others = value.shape
        if isinstance(first, SymInt) and isinstance(first.node.expr, sympy.Symbol):
            firsts.setdefault(first.node.expr, []).append(place)
        for size in others:
            elsewhere |= free_symbols(size)
    known = hints(inputs)
    counted = Counter({s: len(p) for s, p in firsts.items() if s not in elsewhere})
    if len(counted) > 1 and _alike([inputs[firsts[s][0]].shape[0] for s in counted]):
        return find_batch(inputs)
    for symbol, _ in counted.most_common():
        place = firsts[symbol][0]
        size = inputs[place].shape[0]
        if not free_unbacked_symbols(size) and (other := _another(size, known)) is not None:
            return Batch(symbol, size.node.hint, other, place)
    return None


def symbolic(gm: fx.GraphModule, inputs: Sequence[Any]) -> list[Any]:
    """Inputs as Dynamo's graph knows them: those that it hands over may be real, of one size."""
    known = (node.meta.get("example_value") for node in gm.graph.find_nodes(op="placeholder"))
    pairs = zip(inputs, known, strict=True)
    return [fake if _is_symbolic(fake) and _is_plain(value) else value for value, fake in pairs]


def hints(inputs: Sequence[Any]) -> dict[sympy.Symbol, int]:
    """What every symbol of some inputs stands for, as far as a size or a number is one."""
    sizes: Iterable[Any] = (
        size
        for value in inputs
        for size in (value.shape if isinstance(value, Tensor) else (value,))
        if isinstance(size, SymInt) and isinstance(size.node.expr, sympy.Symbol)
    )
    return {size.node.expr: size.node.hint for size in sizes if size.node.hint is not None}


def with_sizes(inputs: Sequence[Any], sizes: Mapping[sympy.Symbol, int]) -> list[Any]:
    """Inputs with numbers for some symbols, and no guard on them; other symbols become static."""
    return [_with_sizes(value, sizes) for value in inputs]


def specialise(inputs: Sequence[Any], but: sympy.Symbol | None = None) -> None:
    """Make every size static that is no matter of one symbol: each gets a guard."""
    for value in inputs:
        sizes = (*value.shape, *value.stride()) if _is_symbolic(value) else (value,)
        for size in sizes:
            if isinstance(size, SymInt) and not (but is not None and free_symbols(size) == {but}):
                int(size)


def _alike(sizes: Sequence[SymInt]) -> bool:
    """Let first axes of one size be one symbol, with a guard; whether any became one.

    Inputs that only meet in a product of sizes (SDXL's times beside its latents) have two.
    """
    known = [size for size in sizes if not free_unbacked_symbols(size)]
    pairs = [(a, b) for a, b in itertools.combinations(known, 2) if a.node.hint == b.node.hint]
    return any(bool(a == b) for a, b in pairs)


def _another(size: SymInt, others: Mapping[sympy.Symbol, int]) -> int | None:
    """A size that all guards so far allow, where other symbols are what they stand for."""
    symbol, environment = size.node.expr, size.node.shape_env
    numbers = {s: sympy.Integer(n) for s, n in others.items() if s != symbol}
    known = [environment.replace(guard.expr).xreplace(numbers) for guard in environment.guards]
    known = [expr for expr in known if symbol in expr.free_symbols]
    bounds = environment.bound_sympy(symbol)
    if any(expr.free_symbols != {symbol} for expr in known):
        return None
    for further in _FURTHER:
        number = sympy.Integer(size.node.hint + further)
        allowed = all(_holds(expr, {symbol: number}) for expr in known)
        if bounds.lower <= number <= bounds.upper and allowed:
            return int(number)
    return None


def _holds(expr: sympy.Basic, sizes: Mapping[sympy.Symbol, sympy.Integer]) -> bool:
    """Whether a guard does for some sizes; it may have no value there."""
    try:
        return expr.xreplace(sizes) is sympy.true
    except ZeroDivisionError:
        return False


def _with_sizes(value: Any, sizes: Mapping[sympy.Symbol, int]) -> Any:
    if isinstance(value, SymInt):
        return _number(value, sizes) if free_symbols(value) <= set(sizes) else value
    if not _is_symbolic(value):
        return value
    shape, strides = ([_number(n, sizes) for n in found] for found in (value.shape, value.stride()))
    with value.fake_mode:
        return torch.empty_strided(shape, strides, dtype=value.dtype, device=value.device)


def _number(size: int | SymInt, sizes: Mapping[sympy.Symbol, int]) -> int:
    if not isinstance(size, SymInt):
        return size
    found = size.node.expr.xreplace({s: sympy.Integer(n) for s, n in sizes.items()})
    return int(found) if found.is_number else int(size)


def _is_symbolic(value: Any) -> bool:
    return _is_plain(value) and getattr(value, "_has_symbolic_sizes_strides", False)


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) and not is_wrapped(value)
