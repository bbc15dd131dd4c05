"""FLOPs, bytes and launches of graph nodes, at full length and on merged tokens.

A graph runs as *products* (linears, attention, convolutions), each a kernel of its own, and as
fused elementwise kernels between them. A fused kernel ends where its result is stored: where a
product or the output reads it, or where several nodes do. It reads what is stored around it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import fx

from toma_fx.devices.profile import DeviceProfile
from toma_fx.passes.graph.attentions import is_attention, token_axis
from toma_fx.passes.graph.nodes import LINEARS, aten, is_getitem, is_tensor, is_view, shape

_CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
_PRODUCTS = {
    aten.matmul.default: "linear",
    aten.mm.default: "linear",
    aten.addmm.default: "linear",
    aten.bmm.default: "batched",
    aten.baddbmm.default: "batched",
    aten.einsum.default: "batched",
    **dict.fromkeys(LINEARS, "linear"),
    **dict.fromkeys(_CONVOLUTIONS, "convolution"),
}

# Passes over the weights before a product on a CPU: linears read them, convolutions reorder them.
_PACKING = {"linear": 1.0, "attention": 0.0, "convolution": 3.0, "batched": 0.0}

Share = Callable[[fx.Node], float]
"""The part of a tensor's elements that is left after merging."""


@dataclass(frozen=True)
class Work:
    """One kernel.

    Attributes:
        kind: `linear`, `attention`, `convolution`, `batched`, or `fused`.
        flops: of products; fused kernels are bound by their bytes.
        bytes: read and written.
        dtype: of the result.
        weights: bytes of parameters among them.
    """

    kind: str
    flops: float
    bytes: float
    dtype: torch.dtype = torch.float32
    weights: float = 0.0

    def seconds(self, profile: DeviceProfile) -> float:
        """The slower of arithmetic and memory, and the launch."""
        moving = self.bytes / profile.bandwidth
        if self.kind == "fused":
            return moving + profile.launch
        # Products stream their operands faster than an elementwise kernel with its arithmetic.
        rate = getattr(profile.rates(self.dtype), self.kind)
        packing = _PACKING[self.kind] * self.weights / profile.bandwidth if profile.packs else 0.0
        return float(max(self.flops / rate, moving / 2) + packing + profile.launch)


def full_length(node: fx.Node) -> float:
    """The share of tensors outside of regions."""
    return 1.0


def kernels(nodes: Iterable[fx.Node], share: Share = full_length) -> Iterator[Work]:
    """The kernels that compute some nodes; `share` says how much of each tensor is left."""
    for node in nodes:
        if _is_product(node):
            yield _product(node, share)
        elif is_stored(node):
            yield Work("fused", 0.0, _size(node, share) + _read(node, share), _dtype(node))


def is_stored(node: fx.Node) -> bool:
    """Whether a fused kernel ends at a node."""
    if node.op != "call_function" or not is_tensor(node) or _passes(node):
        return False
    if _is_product(node):
        return False
    readers = list(islice(_readers(node), 2))
    return len(readers) > 1 or any(r.op == "output" or _is_product(r) for r in readers)


def flops(node: fx.Node, share: Share = full_length) -> float:
    """Multiply-adds counted twice, as the paper does; 0 for anything that is no product."""
    if is_attention(node):
        query, key, value = node.args[:3]
        tokens = shape(key)[token_axis(node)]
        pairs = math.prod(shape(query)[:-1]) * share(query) * tokens * share(key)
        return 2 * pairs * (shape(query)[-1] + shape(value)[-1])
    if node.target in _CONVOLUTIONS:
        return 2 * math.prod(shape(node)) * math.prod(shape(node.args[1])[1:])
    if _is_product(node) and is_tensor(node.args[0]):
        contracted = node.args[1] if node.target in (aten.addmm.default,) else node.args[0]
        return 2 * math.prod(shape(node)) * share(node) * shape(contracted)[-1]
    return 0.0


def _product(node: fx.Node, share: Share) -> Work:
    moved = _size(node, share) + sum(_size(s, share) for s in node.all_input_nodes)
    kind = _PRODUCTS.get(node.target, "attention")
    weights = _size(node.args[1], share) if kind in ("linear", "convolution") else 0.0
    return Work(kind, flops(node, share), moved, _dtype(node), weights)


def _is_product(node: fx.Node) -> bool:
    return node.target in _PRODUCTS or is_attention(node)


def _passes(node: fx.Node) -> bool:
    """Views cost nothing; what reads them reads what they show."""
    return is_getitem(node) or is_view(node)


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    for user in node.users:
        if user.op == "call_function" and _passes(user):
            yield from _readers(user)
        else:
            yield user


def _read(node: fx.Node, share: Share) -> float:
    """Bytes of what is stored around the fused kernel that ends at a node."""
    total, seen = 0.0, {node}
    stack = list(node.all_input_nodes)
    while stack:
        source = stack.pop()
        if source in seen:
            continue
        seen.add(source)
        if source.op == "call_function" and (_passes(source) or not _is_kernel(source)):
            stack += source.all_input_nodes
        elif is_tensor(source):
            total += _size(source, share)
    return total


def _is_kernel(node: fx.Node) -> bool:
    return _is_product(node) or is_stored(node)


def _size(node: fx.Node, share: Share) -> float:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return 0.0
    return float(math.prod(shape(node)) * value.element_size() * share(node))


def _dtype(node: fx.Node) -> torch.dtype:
    value = node.meta.get("val")
    return value.dtype if isinstance(value, torch.Tensor) else torch.float32
