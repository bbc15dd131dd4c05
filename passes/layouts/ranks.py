"""Tokens of several ranks in one tensor: where an exchange leaves them, and what they may not meet.

Each rank runs the same graph on as many tokens, so that what is merged here is merged there, by the
same number. Which tokens stand for the others is known to their own rank alone: nothing may be read
at those of another, nor put back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import fx

from toma_fx.errors import CannotRewrite
from toma_fx.passes.graph.attentions import is_attention
from toma_fx.passes.graph.exchanges import is_exchange, is_wait
from toma_fx.passes.graph.nodes import aten, op_name
from toma_fx.passes.layouts.layout import Ranks, Step, TokenLayout, tables

_KEEP_RANKS_APART = (
    aten._unsafe_view.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.flatten.using_ints,
    aten.permute.default,
    aten.reshape.default,
    aten.select.int,
    aten.swapaxes.default,
    aten.to.dtype,
    aten.transpose.int,
    aten.unflatten.int,
    aten.view.default,
)
"""What may happen to a tensor while an axis of it counts ranks."""


def ranks_axis(layout: TokenLayout) -> int | None:
    """The axis that counts ranks; None where there is none."""
    return None if layout.ranks is None else layout.ranks.axis


def with_ranks_on(layout: TokenLayout, axis: int | None) -> TokenLayout:
    """The same tokens, with the ranks on another axis."""
    assert layout.ranks is not None
    return replace(layout, ranks=replace(layout.ranks, axis=axis))


def of_one(layout: TokenLayout, place: int) -> TokenLayout:
    """The tokens of one rank alone, by its place on the axis that counts ranks."""
    assert layout.ranks is not None
    place %= layout.ranks.count
    return replace(layout, ranks=replace(layout.ranks, axis=None, place=place))


def gathered(layout: TokenLayout, count: int, group: str) -> TokenLayout:
    """What a gather makes of a layout whose first axis, of size one, becomes that of the ranks.

    Each rank may have tokens of other groups already, from an exchange before.
    """
    batch = layout.batch or None
    return replace(layout, batch=batch, ranks=Ranks(count, group, 0, inner=layout.ranks))


def foldings(
    layout: TokenLayout, sizes: Sequence[int]
) -> Iterator[tuple[TokenLayout, tuple[int, ...]]]:
    """The ways to see a tensor: as it is, and with its ranks folded into the tokens, or apart."""
    yield layout, tuple(sizes)
    ranks, axis, batch = layout.ranks, layout.axis, layout.batch
    if ranks is None or ranks.place is not None:
        return
    if ranks.axis is None:
        own = layout.segments[: len(layout.segments) // ranks.count]
        inner = None if batch is None else batch + (batch > axis)
        apart = TokenLayout(axis + 1, inner, own, replace(ranks, axis=axis))
        share = sizes[axis] // ranks.count
        yield apart, (*sizes[:axis], ranks.count, share, *sizes[axis + 1 :])
    elif ranks.axis == axis - 1:
        outer = None if batch is None else batch - (batch > ranks.axis)
        segments = layout.segments * ranks.count
        folded = TokenLayout(ranks.axis, outer, segments, replace(ranks, axis=None))
        tokens = math.prod(sizes[ranks.axis : axis + 1])
        yield folded, (*sizes[: ranks.axis], tokens, *sizes[axis + 1 :])


def exchanged(node: fx.Node, layout: TokenLayout, count: int, group: str) -> TokenLayout:
    """What an exchange of the places of the first axis makes of a layout.

    Own tokens, of which each rank gets a part (its heads), become tokens of all ranks; those of all
    ranks, each sent to its own, become own ones.

    Raises:
        CannotRewrite: the first axis carries something else.
    """
    if layout.ranks is None:
        return replace(layout, ranks=Ranks(count, group, 0))
    if layout.ranks != Ranks(count, group, 0):
        raise CannotRewrite(f"{op_name(node)} sends tokens to a rank that is not theirs", node)
    return replace(layout, ranks=None)


def refuse_beside_ranks(node: fx.Node, step: Step, given: Sequence[TokenLayout | None]) -> None:
    """Refuse what tokens of other ranks may not meet, whatever the operation's rule says.

    Raises:
        CannotRewrite: a table would be read, or tokens be put back, at places that only another
            rank knows; or the operation is none of those that are known to keep ranks apart.
    """
    foreign = [layout.ranks for layout in given if layout is not None and layout.ranks is not None]
    if not foreign or is_exchange(node) or is_wait(node):
        return
    if step.exit is not None or tables(step):
        raise CannotRewrite(f"{op_name(node)} needs to know which tokens other ranks merge", node)
    apart = any(ranks.axis is not None for ranks in foreign)
    if apart and node.target not in _KEEP_RANKS_APART:
        raise CannotRewrite(f"{op_name(node)} comes between an exchange and its tokens", node)
    found = step.layout if isinstance(step.layout, tuple) else (step.layout,)
    lost = any(layout is not None and layout.ranks is None for layout in found)
    # Attention may look at the tokens of all ranks: its result has those of its queries.
    if lost and not is_attention(node):
        raise CannotRewrite(f"{op_name(node)} joins tokens of several ranks", node)
