"""Within pass 1: gathers of a ring keep the axes of the keys and values that they gather.

Why: in ring attention each rank gets the keys and values of all, and attends to those of one rank
after another. To send both at once they are made flat and joined, so that every axis is gone where
the layout rules want to know which one carries tokens. The gather takes any number of axes.

Before: `[…] each → flatten → cat → all_gather(P) → wait → chunk(P) → slice → reshape`.
After: `[…] each → stack → unsqueeze(0) → all_gather(P) → wait → select rank → select part`.

What is gathered lies in memory as before. Where the merged graph is done, `flatten_gathers` makes
it flat again, for the sake of code generators that lose track of contiguity.

Precondition: sizes are static.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from toma_fx.passes.graph.exchanges import is_gather, is_wait
from toma_fx.passes.graph.nodes import CATS, SPLITS, aten, part_of, shape
from toma_fx.passes.normalize.inserted import insert_call

_FLATTENS = (aten.flatten.using_ints, aten.reshape.default, aten.view.default)
_RESHAPES = (aten.reshape.default, aten.view.default, aten.reshape_as.default)


def unflatten_gathers(gm: fx.GraphModule) -> None:
    """Let each gather of several tensors of one shape see the axes that they had."""
    for node in [node for node in gm.graph.nodes if is_gather(node)]:
        parts = _joined(node)
        waits = list(node.users) if parts else []
        if len(waits) == 1 and is_wait(waits[0]):
            found = list(_readers(waits[0], node.args[1], parts))
            readers = [reader for reader in found if reader is not None]
            if len(readers) == len(found):
                _gather_apart(gm.graph, waits[0], parts, readers)
    gm.recompile()


def flatten_gathers(gm: fx.GraphModule) -> None:
    """Make the operands of those gathers flat again."""
    for node in [node for node in gm.graph.nodes if is_gather(node)]:
        whole, count, group = node.args
        if whole.target is not aten.unsqueeze.default:
            continue
        sizes = [count, *shape(whole)[1:]]
        with gm.graph.inserting_before(node):
            flat = insert_call(gm.graph, aten.reshape.default, (whole, [-1]), node)
            new = insert_call(gm.graph, node.target, (flat, count, group), node)
        for wait in list(node.users):
            with gm.graph.inserting_before(wait):
                waited = insert_call(gm.graph, wait.target, (new,), wait)
                back = insert_call(gm.graph, aten.reshape.default, (waited, sizes), wait)
            wait.replace_all_uses_with(back)
            gm.graph.erase_node(wait)
        gm.graph.erase_node(node)
    gm.recompile()


def _joined(gather: fx.Node) -> list[fx.Node]:
    """The tensors of one shape that are gathered, one flat behind the other; else none."""
    joined = gather.args[0]
    if joined.target not in CATS or len(shape(joined)) != 1:
        return []
    flat: list[fx.Node] = joined.args[0]
    if any(part.target not in _FLATTENS for part in flat):
        return []
    parts = [part.args[0] for part in flat]
    return parts if len({shape(part) for part in parts}) == 1 else []


_Reader = tuple[fx.Node, int, int]


def _readers(wait: fx.Node, ranks: int, parts: list[fx.Node]) -> Iterator[_Reader | None]:
    """What reads one part of one rank in its sizes, with both numbers; None for anything else."""
    total = shape(wait)[0]
    length = total // (ranks * len(parts))
    for node, first, last in _runs(wait, 0, total):
        index, rest = divmod(first, length)
        known = node.target in _RESHAPES and shape(node) == shape(parts[0])
        rank, part = divmod(index, len(parts))
        yield (node, rank, part) if known and not rest and last - first == length else None


def _runs(node: fx.Node, first: int, last: int) -> Iterator[tuple[fx.Node, int, int]]:
    """What reads the elements `first … last` of a flat tensor, or a run of them."""
    for user in node.users:
        pieces = list(user.users) if user.target in SPLITS else [user]
        for piece in pieces:
            part = part_of(piece, 0)
            if part is None:
                yield piece, first, last
            else:
                yield from _runs(piece, first + part[1], first + part[2])


def _gather_apart(
    graph: fx.Graph, wait: fx.Node, parts: list[fx.Node], readers: list[_Reader]
) -> None:
    gather: fx.Node = wait.args[0]
    joined, count, group = gather.args
    with graph.inserting_before(gather):
        stacked = insert_call(graph, aten.stack.default, (parts,), gather)
        whole = insert_call(graph, aten.unsqueeze.default, (stacked, 0), gather)
        gathered = insert_call(graph, gather.target, (whole, count, group), gather)
        waited = insert_call(graph, wait.target, (gathered,), wait)
    for reader, rank, part in readers:
        with graph.inserting_before(reader):
            of_rank = insert_call(graph, aten.select.int, (waited, 0, rank), reader)
            found = insert_call(graph, aten.select.int, (of_rank, 0, part), reader)
        reader.replace_all_uses_with(found)
    _erase_with_readers(graph, gather)
    for node in (joined, *joined.args[0]):
        if not node.users:
            graph.erase_node(node)


def _erase_with_readers(graph: fx.Graph, node: fx.Node) -> None:
    for user in list(node.users):
        _erase_with_readers(graph, user)
    graph.erase_node(node)
