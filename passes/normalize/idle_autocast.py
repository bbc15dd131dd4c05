"""Within pass 1: autocast that casts nothing is removed.

Why: many models compute their rotary embeddings inside `torch.autocast(enabled=False)`, in case
somebody calls them under autocast. Where nobody does, and the tensors inside are in full precision
anyway, entering and leaving it changes no value.

Precondition: the graph is traced; autocast itself is a pair of calls around what it surrounds.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from toma_fx.errors import CannotRewrite

_ENTER = torch.amp.autocast_mode._enter_autocast
_EXIT = torch.amp.autocast_mode._exit_autocast
_HALF = (torch.float16, torch.bfloat16)


def drop_idle_autocast(gm: fx.GraphModule) -> None:
    """Remove the pairs of calls that change no value.

    Raises:
        CannotRewrite: one casts; what it casts is not in the graph, so rules would be wrong of it.
    """
    entered: list[fx.Node] = []
    found: list[fx.Node] = []
    for node in gm.graph.nodes:
        if node.target is _ENTER:
            if not _is_idle(node):
                raise CannotRewrite(
                    "autocast inside the model: wrap the call in it, or cast the model"
                )
            entered.append(node)
            found.append(node)
        elif node.target is _EXIT:
            entered.remove(node.args[0])
            found.append(node)
        elif any(_casts(outer, node) for outer in entered):
            raise CannotRewrite("autocast inside the model: wrap the call in it, or cast the model")
    for node in reversed(found):
        gm.graph.erase_node(node)


def _is_idle(enter: fx.Node) -> bool:
    """Switched off where it is off anyway, or on for full precision."""
    device, dtype, enabled, *_ = enter.args
    if torch.is_autocast_enabled(device):
        return False
    return not enabled or dtype is torch.float32


def _casts(enter: fx.Node, node: fx.Node) -> bool:
    """Whether an operand is in half precision, which autocast to full precision would cast."""
    values = [source.meta.get("val") for source in node.all_input_nodes]
    tensors = [value for value in values if isinstance(value, Tensor)]
    return bool(enter.args[2]) and any(tensor.dtype in _HALF for tensor in tensors)
