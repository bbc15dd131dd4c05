"""Which operations are attention, and how each takes its operands.

Kernels differ in where the tokens stand, `[B, H, N, D]` or `[B, N, H, D]`, in the names of their
arguments, and in what they return beside the result. Operations are known by the names of their
schemas, so that a package may be imported later, or not at all. What stands not here is refused by
name: packed batches of varying length, caches of keys, and kernels of quantised operands.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from toma_fx.passes.graph.nodes import schema_name, shape

# Axis of the tokens in query, key, value and result. Query, key and value come first.
_HEADS_FIRST, _TOKENS_FIRST = -2, 1
_TOKEN_AXIS = {
    "aten::scaled_dot_product_attention": _HEADS_FIRST,
    # What `scaled_dot_product_attention` becomes where it is traced further.
    "aten::_scaled_dot_product_flash_attention": _HEADS_FIRST,
    "aten::_scaled_dot_product_flash_attention_for_cpu": _HEADS_FIRST,
    "aten::_scaled_dot_product_efficient_attention": _HEADS_FIRST,
    "aten::_scaled_dot_product_cudnn_attention": _HEADS_FIRST,
    "aten::_scaled_dot_product_fused_attention_overrideable": _HEADS_FIRST,
    # The kernels below it, which xformers calls as well.
    "aten::_flash_attention_forward": _TOKENS_FIRST,
    "aten::_efficient_attention_forward": _TOKENS_FIRST,
    "xformers_flash::flash_fwd": _TOKENS_FIRST,
    "xformers_flash3::flash_fwd": _TOKENS_FIRST,
    # The package flash_attn, versions 2 and 3, and diffusers' own entry to the latter.
    "flash_attn::_flash_attn_forward": _TOKENS_FIRST,
    "flash_attn_3::_flash_attn_forward": _TOKENS_FIRST,
    "_diffusers_flash_attn_3::_flash_attn_forward": _TOKENS_FIRST,
    # SageAttention where it is one operation: see `tensor_layout`.
    "sageattention_internal::sageattn_autotuned": _TOKENS_FIRST,
}

NORMALISER, NORMALISER_AXIS = 1, 2
"""Which result is the logarithm of what a query's row is divided by, `[B, H, N]`, if any is."""

MASKS = ("attn_mask", "attn_bias", "bias")
CAUSAL = ("is_causal", "causal")
DROPOUT = ("dropout_p", "p")
QUERY_COUNTS = ("max_q", "max_seqlen_q")
KEY_COUNTS = ("max_k", "max_seqlen_k")
# Arguments that treat every token alike, whatever their value.
_ALIKE = (
    "scale", "softmax_scale", "sm_scale", "softcap", "enable_gqa", "tensor_layout",
    "compute_log_sumexp", "return_softmax", "return_debug_mask", "unpadded_lse",
    "num_splits", "pack_gqa", "deterministic", "sm_margin", "pv_accum_dtype", "smooth_k",
    "smooth_v", "blk_q", "blk_k", "warp_q", "warp_k",
)  # fmt: skip
# Values that switch an argument off: no window, no bias, no lengths.
_OFF = (None, False, 0, -1)


def is_attention(node: fx.Node) -> bool:
    """Whether a node is an attention whose operands can be told apart."""
    return schema_name(node) in _TOKEN_AXIS


def token_axis(node: fx.Node) -> int:
    """Where an attention's query, key, value and result carry their tokens."""
    layout = arguments(node).get("tensor_layout")
    axis = _HEADS_FIRST if layout == "HND" else _TOKEN_AXIS[schema_name(node)]
    return axis % len(shape(node.args[0]))


def arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments after query, key and value that were given, by their names in the schema."""
    names = [argument.name for argument in node.target._schema.arguments]
    return dict(zip(names[3:], node.args[3:], strict=False)) | node.kwargs


def is_harmless(name: str, value: object) -> bool:
    """Whether an argument leaves tokens exchangeable: one that always does, or is switched off."""
    return name in _ALIKE or (not isinstance(value, fx.Node) and value in _OFF)


def names() -> tuple[str, ...]:
    """All operations that are recognised."""
    return tuple(_TOKEN_AXIS)
