"""What each node depends on: parameters alone, position inputs, or activations.

A *position table* (rotary cosines and sines, position embeddings, masks given as inputs) may be
read at the destinations instead of being merged. An activation may not. The difference shows in
the graph: an activation's input feeds a linear, a convolution, a norm or an embedding; position
ids and masks only pass through arithmetic before they meet the tokens. Outer products, as of
positions and frequencies, are arithmetic too, and so is a look-up in a table that is an input.
"""

from __future__ import annotations

import torch
from torch import fx

from toma_fx.passes.graph.attentions import is_attention
from toma_fx.passes.graph.nodes import LINEARS, aten, shape

_LEARNED = (
    *LINEARS,
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv3d.default,
    aten.layer_norm.default,
    aten.rms_norm.default,
    aten.group_norm.default,
    aten.addmm.default,
)
_PRODUCTS = (aten.matmul.default, aten.mm.default, aten.bmm.default)


# What reads only the size, dtype and device of its operand.
_PATTERNED = (
    aten.empty_like.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
    aten.new_empty.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_full.default,
)


class Inputs:
    """For every node, the set of varying inputs in its past, as a bit mask."""

    def __init__(self, graph: fx.Graph) -> None:
        self._mask: dict[fx.Node, int] = {}
        self._learned: set[fx.Node] = set()
        self.features = 0
        # Inputs that are true or false say which tokens there are, and are no content.
        self._flags = 0
        varying = 0
        for node in graph.nodes:
            if node.op == "placeholder":
                self._mask[node] = 0 if is_static(node) else 1 << varying
                value = node.meta.get("val")
                if isinstance(value, torch.Tensor) and value.dtype is torch.bool:
                    self._flags |= self._mask[node]
                varying += not is_static(node)
                continue
            mask = 0
            for source in node.all_input_nodes if node.target not in _PATTERNED else ():
                mask |= self._mask[source]
            self._mask[node] = mask
            learned = mask and self._learns(node)
            downstream = node.target not in _PATTERNED and any(
                source in self._learned for source in node.all_input_nodes
            )
            if learned and not downstream:
                self.features |= self._operands(node)
            # Random numbers are no table either, though they depend on no input.
            random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
            if learned or downstream or random:
                self._learned.add(node)

    def _learns(self, node: fx.Node) -> bool:
        """Whether a node weighs channels, as trained layers do, instead of computing one by one."""
        if node.target is aten.embedding.default:
            return self._mask[node.args[0]] == 0
        if node.target is aten.einsum.default:
            return _contracts(node)
        if node.target in _PRODUCTS:
            return shape(node.args[0])[-1] > 1
        return node.target in _LEARNED or is_attention(node)

    def _operands(self, node: fx.Node) -> int:
        """Inputs behind what is multiplied or normalised; an attention mask is neither."""
        operands = node.args[:3] if is_attention(node) else node.args[:2]
        mask = 0
        for operand in operands:
            if isinstance(operand, fx.Node):
                mask |= self._mask[operand]
        return mask & ~self._flags

    def varying(self, placeholder: fx.Node) -> bool:
        """Whether a placeholder is an argument of the call, not a parameter."""
        return self._mask[placeholder] != 0

    def is_feature(self, placeholder: fx.Node) -> bool:
        """Whether an input is an activation: it feeds a linear, a convolution or a norm."""
        return self._mask[placeholder] & self.features != 0

    def depends_only_on(self, node: fx.Node, placeholder: fx.Node) -> bool:
        """Whether no other input of the call is in a node's past."""
        return self._mask[node] == self._mask[placeholder]

    def is_activation(self, node: object) -> bool:
        """Whether a node is, or comes from, the result of a linear, a convolution or a norm."""
        return node in self._learned

    def constant(self, node: fx.Node) -> bool:
        """Whether a node depends on parameters and constants alone."""
        return self._mask[node] == 0 and node not in self._learned

    def is_computed_plainly(self, node: fx.Node) -> bool:
        """Whether only arithmetic lies between the inputs and a node, whatever else they feed."""
        return node not in self._learned

    def is_table(self, node: fx.Node) -> bool:
        """Whether a node depends on no activation: constants and position inputs alone."""
        return self._mask[node] & self.features == 0 and node not in self._learned


def _contracts(einsum: fx.Node) -> bool:
    """Whether a letter is summed over."""
    sources, _, result = str(einsum.args[0]).replace(" ", "").partition("->")
    return not result or not set(sources) - set(",.") <= set(result)


def is_static(placeholder: fx.Node) -> bool:
    """Whether a placeholder is a parameter or buffer of the model, by what its tracer recorded.

    Dynamo marks static inputs and keeps each input's source; exported graphs are marked by their
    door (`meta["toma_static"]`).
    """
    if placeholder.meta.get("toma_static"):
        return True
    if (placeholder.meta.get("tensor_dict") or {}).get("_dynamo_static_input_type"):
        return True
    argument = placeholder.meta.get("grapharg")
    if isinstance(getattr(argument, "_example", None), torch.nn.Parameter):
        return True
    source = getattr(placeholder, "_dynamo_source", None)
    return source is not None and _belongs_to_module(source)


def _belongs_to_module(source: object) -> bool:
    """A tensor that Dynamo read from a module, `self.table`, not an argument of the call."""
    origin = getattr(source, "guard_source", None)
    origin = origin() if callable(origin) else origin
    return origin is not None and "NN_MODULE" in origin.name
