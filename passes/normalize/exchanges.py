"""Within pass 1: exchanges between ranks keep the axes of what they exchange.

Why: under context parallelism an all-to-all trades heads for tokens. Whoever calls it makes its
operand flat, for the sake of code generators that lose track of contiguity, so that every axis is
gone where the layout rules want to know which one carries tokens. The operation itself takes any
number of axes, and cuts the first.

Before: `[P, …] → flatten → all_to_all_single(n/P each) → wait_tensor → reshape`.
After: `[P, …] → contiguous → all_to_all_single(1 each) → wait_tensor → reshape`.

Where the merged graph is done, `flatten_exchanges` makes the operands flat again.

Precondition: sizes are static.
"""

from __future__ import annotations

from torch import fx

from toma_fx.errors import CannotRewrite
from toma_fx.passes.graph.exchanges import UNEVEN, is_even, is_exchange, is_wait
from toma_fx.passes.graph.nodes import aten, shape
from toma_fx.passes.normalize.inserted import insert_call

_FLATTENS = (aten.flatten.using_ints, aten.reshape.default, aten.view.default)
_RESHAPES = (aten.reshape.default, aten.view.default)


def unflatten_exchanges(gm: fx.GraphModule) -> None:
    """Let each exchange see the axes that were made flat in front of it.

    Raises:
        CannotRewrite: shares are not equal. Ranks then differ in their sizes, and what one merges
            would not be what another does.
    """
    for node in [node for node in gm.graph.nodes if is_exchange(node)]:
        if not is_even(node):
            raise CannotRewrite(UNEVEN, node)
        flat, _, sent, group = node.args
        ranks = len(sent)
        waits = list(node.users)
        known = flat.target in _FLATTENS and len(shape(flat)) == 1
        if not known or not all(is_wait(wait) and _gives_axes(wait) for wait in waits):
            continue
        source: fx.Node = flat.args[0]
        if shape(source)[0] != ranks:
            continue
        with gm.graph.inserting_before(node):
            whole = insert_call(gm.graph, aten.contiguous.default, (source,), node)
            equal = [1] * ranks
            exchanged = insert_call(gm.graph, node.target, (whole, equal, equal, group), node)
        for wait in waits:
            with gm.graph.inserting_before(wait):
                waited = insert_call(gm.graph, wait.target, (exchanged,), wait)
            wait.replace_all_uses_with(waited)
            gm.graph.erase_node(wait)
        gm.graph.erase_node(node)
        if not flat.users:
            gm.graph.erase_node(flat)
    gm.recompile()


def flatten_exchanges(gm: fx.GraphModule) -> None:
    """Make the operands of all exchanges flat again, as they were given."""
    for node in [node for node in gm.graph.nodes if is_exchange(node)]:
        whole, _, sent, group = node.args
        sizes = shape(whole)
        if len(sizes) == 1:
            continue
        share = [whole.meta["val"].numel() // len(sent)] * len(sent)
        with gm.graph.inserting_before(node):
            flat = insert_call(gm.graph, aten.reshape.default, (whole, [-1]), node)
            exchanged = insert_call(gm.graph, node.target, (flat, share, share, group), node)
        for wait in list(node.users):
            with gm.graph.inserting_before(wait):
                waited = insert_call(gm.graph, wait.target, (exchanged,), wait)
                back = insert_call(gm.graph, aten.reshape.default, (waited, list(sizes)), wait)
            wait.replace_all_uses_with(back)
            gm.graph.erase_node(wait)
        gm.graph.erase_node(node)
    gm.recompile()


def _gives_axes(wait: fx.Node) -> bool:
    """Whether all that reads the flat result says which axes it has."""
    return all(user.target in _RESHAPES for user in wait.users)
