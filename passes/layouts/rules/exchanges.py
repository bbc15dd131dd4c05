"""Rules for exchanges between ranks: the same counts on all of them by shape alone, or a refusal.

Under Ulysses an all-to-all trades heads for tokens before attention, and back behind it. Its first
axis has a place for every rank. In a ring a gather brings the keys and values of all ranks, whose
queries meet those of one rank after another. Whatever is merged has then one length on all ranks,
because all run the same graph: a rank that sent less than another waits for would wait for ever.
"""

from __future__ import annotations

from torch import fx

from toma_fx.errors import CannotRewrite
from toma_fx.passes.graph.exchanges import EXCHANGE, GATHER, UNEVEN, WAIT, is_even
from toma_fx.passes.graph.nodes import op_name, shape
from toma_fx.passes.layouts.layout import Step, TokenLayout
from toma_fx.passes.layouts.ranks import exchanged, gathered
from toma_fx.passes.layouts.rules.table import Flow, layout_rule


@layout_rule(EXCHANGE)
def all_to_all(node: fx.Node, flow: Flow) -> Step:
    """Each place of the first axis goes to the rank of its number."""
    source, _, sent, group = node.args
    layout = _layout(node, flow)
    if not is_even(node):
        raise CannotRewrite(UNEVEN, node)
    if shape(source)[0] != len(sent) or 0 in (layout.axis, layout.batch):
        raise CannotRewrite(f"{op_name(node)} cuts tokens or items, not heads", node)
    return Step(exchanged(node, layout, len(sent), group), node.args)


@layout_rule(WAIT)
def wait(node: fx.Node, flow: Flow) -> Step:
    """What arrives is what was exchanged."""
    return Step(_layout(node, flow), node.args)


@layout_rule(GATHER)
def gather(node: fx.Node, flow: Flow) -> Step:
    """The first axes of all ranks, one after the other: they count ranks where each has one."""
    layout = _layout(node, flow)
    source, count, group = node.args
    if layout.axis and shape(source)[0] == 1:
        return Step(gathered(layout, count, group), node.args)
    if layout.is_merged or layout.axis == 0:
        raise CannotRewrite(f"{op_name(node)} joins items, or merged tokens, of all ranks", node)
    return Step(layout.moved(layout.axis, None), node.args)


def _layout(node: fx.Node, flow: Flow) -> TokenLayout:
    layout = flow.layout(node.args[0])
    assert layout is not None
    return layout
