"""Which nodes let the ranks of a group exchange what they have.

They are known by their schemas: a torch that is built without them has no such operations.
"""

from __future__ import annotations

from torch import fx

from toma_fx.passes.graph.nodes import schema_name

EXCHANGE = "_c10d_functional::all_to_all_single"
GATHER = "_c10d_functional::all_gather_into_tensor"
WAIT = "_c10d_functional::wait_tensor"


def is_exchange(node: fx.Node) -> bool:
    """Whether each rank of a group sends a part of a tensor to every other."""
    return node.op == "call_function" and schema_name(node) == EXCHANGE


def is_gather(node: fx.Node) -> bool:
    """Whether each rank of a group gets what all of them have."""
    return node.op == "call_function" and schema_name(node) == GATHER


def is_wait(node: fx.Node) -> bool:
    """Whether a node waits for what an exchange has begun."""
    return node.op == "call_function" and schema_name(node) == WAIT


def meets_ranks(node: fx.Node) -> bool:
    """Whether every rank of a group has to run a node alike, or all wait for ever."""
    return is_exchange(node) or is_gather(node)


def is_even(node: fx.Node) -> bool:
    """Whether an all-to-all sends to each rank, and gets from each, as much."""
    return len({*node.args[1], *node.args[2]}) == 1


UNEVEN = "ranks exchange unequal shares: merged, they would wait for tokens that nobody sends"
