"""What torch hangs on a graph beside its nodes, carried from one graph to the next."""

from __future__ import annotations

from torch import fx
from torch._dynamo.source import AttrSource, LocalSource


def keep_metadata(source: fx.GraphModule, target: fx.GraphModule) -> None:
    """Carry over what AOTAutograd reads to tell static inputs (parameters) from the others.

    Without it CUDA graphs would copy every parameter at every call
    (`torch/_functorch/_aot_autograd/frontend_utils.py`).
    """
    target.meta.update(source.meta)
    if hasattr(source, "_param_name_to_source"):
        state = [*dict(target.named_parameters()), *dict(target.named_buffers())]
        sources = {name: AttrSource(LocalSource("toma_fx"), name) for name in state}
        target._param_name_to_source = sources
    theirs = source.graph.find_nodes(op="placeholder")
    for old, new in zip(theirs, target.graph.find_nodes(op="placeholder"), strict=True):
        value = new.meta.get("val")
        new.meta.update({key: item for key, item in old.meta.items() if key != "val"})
        if value is not None:
            new.meta["val"] = value
        if hasattr(old, "_dynamo_source"):
            new._dynamo_source = old._dynamo_source
