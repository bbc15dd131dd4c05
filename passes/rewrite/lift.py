"""After the passes: what a graph keeps between calls becomes inputs of it.

Why: a compiler that finds a buffer makes it part of its code, which then has one set of plans. As
inputs, one compiled block serves every block of its class, each with a set of its own.

Before: `plan = get_attr[toma_plan_0_merging]`, written in place. After: the placeholder of that
name, behind the others, written in place.

Precondition: the graph is not lifted yet; it comes from `rewrite`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx
from torch._dynamo.source import AttrSource, LocalSource

from toma_fx.passes.methods.order_nodes import FINGERPRINT, ORDER
from toma_fx.passes.methods.slots import MOMENT, SlotBuffer

STATE = (*SlotBuffer.PREFIXES, "toma_guard_")
"""Names of what is kept begin so."""


@dataclass(frozen=True)
class Lifted:
    """The inputs that a graph has now beside those of the plain one.

    Attributes:
        names: in their order.
        examples: their fake values.
        kept: all that the graph keeps between calls, by name, as it is before the first one; also
            what this graph does not read, but others would that share it.
        moment: what it is told from outside, by name, as it is where nobody tells it.
        orders: fingerprints of its windows' orders, where they are constants: graphs of other ones
            share no plans.
    """

    names: tuple[str, ...]
    examples: tuple[Any, ...]
    kept: dict[str, Tensor]
    moment: dict[str, Tensor]
    orders: tuple[bytes, ...]


def kept_by(gm: fx.GraphModule) -> dict[str, Tensor]:
    """The buffers that a rewritten graph keeps between calls, by name."""
    return {name: held for name, held in gm.named_buffers() if name.startswith(STATE)}


def lift(gm: fx.GraphModule) -> Lifted:
    """Make inputs, in place, of the buffers that a graph keeps, and of what tells it the moment."""
    kept = kept_by(gm)
    moment = {name: held for name, held in gm.named_buffers() if name.startswith(MOMENT)}
    last = gm.graph.find_nodes(op="placeholder")[-1]
    names, examples = [], []
    orders = []
    for node in gm.graph.find_nodes(op="get_attr"):
        if node.target.startswith(ORDER):
            orders.append(node.meta[FINGERPRINT])
        if node.target not in kept and node.target not in moment:
            continue
        with gm.graph.inserting_after(last):
            last = gm.graph.placeholder(node.target)
        last.meta = {"val": node.meta["val"], "tensor_dict": dict(_STATIC)}
        last._dynamo_source = AttrSource(LocalSource("toma_fx"), node.target)
        node.replace_all_uses_with(last)
        gm.graph.erase_node(node)
        names.append(node.target)
        examples.append(last.meta["val"])
    for name in (*kept, *moment):
        delattr(gm, name)
    gm.recompile()
    return Lifted(tuple(names), tuple(examples), kept, moment, tuple(orders))


# So that CUDA graphs read them where they are, as they do parameters
# (`torch/_functorch/_aot_autograd/frontend_utils.py`).
_STATIC = {"_dynamo_static_input_type": "unguarded"}
