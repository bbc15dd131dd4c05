"""Nodes that a normalised graph gets, with the values that they would have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch._guards import detect_fake_mode

from toma_fx.passes.graph.nodes import map_leaves


def insert_call(
    graph: fx.Graph, target: Callable[..., Any], args: tuple[Any, ...], like: fx.Node
) -> fx.Node:
    """A call where `graph` inserts, of the module of `like`; its value is fake."""
    node = graph.call_function(target, args)
    values = map_leaves(args, lambda arg: arg.meta["val"] if isinstance(arg, fx.Node) else arg)
    node.meta = {key: value for key, value in like.meta.items() if key != "val"}
    mode = detect_fake_mode([source.meta["val"] for source in node.all_input_nodes])
    assert mode is not None
    with mode, torch.no_grad():
        node.meta["val"] = target(*values)
    return node
