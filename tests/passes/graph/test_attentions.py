"""Attention kernels of other packages: recognised in their own layouts, or refused by name.

None of the packages is needed: operations of the same names and schemas are defined here where
they are missing, and compute on a CPU what the real ones do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models import attention_dispatch  # noqa: F401 - registers its operation
from torch import Tensor

from tests.helpers import Attention, Cross, assert_exact, assert_untouched, repeated_tokens

_DEFINED: list[torch.library.Library] = []


def tokens_first(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of `[B, N, H, D]`."""
    heads = (operand.transpose(1, 2) for operand in (query, key, value))
    return F.scaled_dot_product_attention(*heads).transpose(1, 2).contiguous()


def define(schema: str, run: Callable[..., Any]) -> Callable[..., Any]:
    """The operation of a schema; the package's own, where it is installed, with a CPU kernel."""
    namespace, rest = schema.split("::")
    name = rest.split("(")[0]
    library = torch.library.Library(namespace, "FRAGMENT")
    _DEFINED.append(library)
    if hasattr(getattr(torch.ops, namespace), name):
        library.impl(name, run, "CPU")
    else:
        library.define(rest)
        library.impl(name, run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{namespace}::{name}", run, lib=library)
    return getattr(getattr(torch.ops, namespace), name)


def with_statistics(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
    B, N, H, _width = query.shape
    return tokens_first(query, key, value), query.new_zeros(B, H, N)


flash_2 = define(
    "flash_attn::_flash_attn_forward(Tensor q, Tensor k, Tensor v, float dropout_p, "
    "float softmax_scale, bool causal, SymInt window_size_left, SymInt window_size_right, "
    "float softcap, Tensor? alibi_slopes, bool return_softmax) -> (Tensor, Tensor, Tensor, Tensor)",
    lambda *args: (*with_statistics(*args[:3]), args[0].new_zeros(0), args[0].new_zeros(2)),
)
flash_3 = define(
    "flash_attn_3::_flash_attn_forward(Tensor q, Tensor k, Tensor v, Tensor? k_new=None, "
    "Tensor? cu_seqlens_q=None, int? max_seqlen_q=None, float? softmax_scale=None, "
    "bool causal=False, int window_size_left=-1, int window_size_right=-1, int num_splits=1, "
    "bool? pack_gqa=None, int sm_margin=0) -> (Tensor, Tensor)",
    with_statistics,
)
diffusers_flash_3 = define(
    "_diffusers_flash_attn_3::_flash_attn_forward(Tensor q, Tensor k, Tensor v, "
    "float? softmax_scale=None, bool causal=False, Tensor? qv=None) -> (Tensor, Tensor)",
    with_statistics,
)
xformers_flash = define(
    "xformers_flash::flash_fwd(Tensor query, Tensor key, Tensor value, Tensor? cu_seqlens_q, "
    "Tensor? cu_seqlens_k, Tensor? seqused_k, int max_seqlen_q, int max_seqlen_k, float p, "
    "float softmax_scale, bool is_causal, int window_left, int window_right, "
    "bool return_softmax, Tensor? block_tables, bool unpadded_lse) -> (Tensor, Tensor, Tensor)",
    lambda *args: (*with_statistics(*args[:3]), args[0].new_zeros(2)),
)


def _sage(query: Tensor, key: Tensor, value: Tensor, tensor_layout: str, *_: Any) -> Tensor:
    if tensor_layout == "HND":
        return F.scaled_dot_product_attention(query, key, value).contiguous()
    return tokens_first(query, key, value)


sage = define(
    "sageattention_internal::sageattn_autotuned(Tensor q, Tensor k, Tensor v, str tensor_layout, "
    "bool is_causal, str pv_accum_dtype, bool smooth_k) -> Tensor",
    _sage,
)
packed = define(
    "flash_attn::_flash_attn_varlen_forward(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q) "
    "-> Tensor",
    lambda query, key, value, lengths: tokens_first(query, key, value),
)


def counts(query: Tensor, key: Tensor) -> tuple[int, int]:
    return query.shape[1], key.shape[1]


KERNELS: dict[str, Callable[..., Tensor]] = {
    "flash_attn 2": lambda q, k, v: flash_2(q, k, v, 0.0, 0.3, False, -1, -1, 0.0, None, False)[0],
    "flash_attn 3": lambda q, k, v: flash_3(q, k, v, softmax_scale=0.3, num_splits=0)[0],
    "flash_attn 3 of diffusers": lambda q, k, v: diffusers_flash_3(q, k, v, 0.3)[0],
    "xformers": lambda q, k, v: xformers_flash(
        q, k, v, None, None, None, *counts(q, k), 0.0, 0.3, False, -1, -1, False, None, False
    )[0],
    "sage": lambda q, k, v: sage(q, k, v, "NHD", False, "fp32", True),
    "sage, heads first": lambda q, k, v: sage(
        *(x.transpose(1, 2) for x in (q, k, v)), "HND", False, "fp32", True
    ).transpose(1, 2),
    "of the CPU": lambda q, k, v: torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *(x.transpose(1, 2) for x in (q, k, v))
    )[0].transpose(1, 2),
}


def through(kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The inner attention of a test model, on `[B, N, H, D]`."""

    def inner(block: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Tensor:
        heads = (operand.unflatten(2, (2, -1)) for operand in (query, key, value))
        return kernel(*heads).flatten(2)

    return inner


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_run_on_merged_tokens(name: str) -> None:
    run = assert_exact(Attention(through(KERNELS[name])), repeated_tokens(2, 64))
    assert run.region.kind == "self_attention"
    assert run.region.flops_after < run.region.flops_before


def test_text_as_keys_of_a_kernel() -> None:
    words = torch.randn(2, 7, 16)
    run = assert_exact(Cross(through(KERNELS["xformers"])), repeated_tokens(2, 64), words)
    assert run.region.kind == "cross_attention"


REFUSED: dict[str, tuple[Callable[..., Tensor], str]] = {
    "causal": (
        lambda q, k, v: flash_2(q, k, v, 0.0, 0.3, True, -1, -1, 0.0, None, False)[0],
        "causal attention depends on the order of tokens",
    ),
    "window": (
        lambda q, k, v: flash_2(q, k, v, 0.0, 0.3, False, 4, 4, 0.0, None, False)[0],
        "flash_attn._flash_attn_forward.default is called with window_size_left=4",
    ),
    "dropout": (
        lambda q, k, v: flash_2(q, k, v, 0.1, 0.3, False, -1, -1, 0.0, None, False)[0],
        "attention dropout is active",
    ),
    "slopes": (
        lambda q, k, v: flash_2(
            q, k, v, 0.0, 0.3, False, -1, -1, 0.0, torch.ones(2), False
        )[0],
        "is called with alibi_slopes=",
    ),
    "statistics": (
        lambda q, k, v: flash_2(q, k, v, 0.0, 0.3, False, -1, -1, 0.0, None, True)[0]
        + flash_2(q, k, v, 0.0, 0.3, False, -1, -1, 0.0, None, True)[2].mean(),
        "what the attention returns beside its result is read",
    ),
    "lengths": (
        lambda q, k, v: packed(q, k, v, torch.zeros(3, dtype=torch.int32)),
        "no layout rule for flash_attn._flash_attn_varlen_forward.default",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_tells_tokens_apart_is_refused_by_name(case: str) -> None:
    kernel, reason = REFUSED[case]
    assert_untouched(Attention(through(kernel)), repeated_tokens(2, 64), reason=reason)
