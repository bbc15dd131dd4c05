"""What tracing to ATen keeps: the chosen attention kernel, and FlexAttention's meaning."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from tests.helpers import (
    Attention,
    Run,
    assert_exact,
    assert_untouched,
    attend,
    join_heads,
    repeated_tokens,
    split_heads,
)


def flex(**options: Any) -> Any:
    def inner(block: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Tensor:
        heads = (split_heads(operand) for operand in (query, key, value))
        return join_heads(flex_attention(*heads, **options))

    return inner


def chosen(block: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return attend(query, key, value)


def targets(run: Run) -> list[Any]:
    return [node.target for node in run.graph.graph.nodes]


def test_a_chosen_kernel_stays_chosen_around_the_attention() -> None:
    found = targets(assert_exact(Attention(chosen), repeated_tokens(2, 64)))
    choose = torch.nn.attention._sdpa_kernel
    attention = found.index(torch.ops.aten.scaled_dot_product_attention.default)
    assert found.count(choose) == 2  # chosen, and given back
    first = found.index(choose)
    assert first < attention < found.index(choose, first + 1)


@pytest.mark.parametrize("options", [{}, {"scale": 0.2}], ids=str)
def test_flex_attention_without_a_mask_is_plain_attention(options: dict[str, Any]) -> None:
    run = assert_exact(Attention(flex(**options)), repeated_tokens(2, 64))
    assert run.region.kind == "self_attention"


def nearer(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return score - (query - key).abs()


def test_flex_attention_that_reads_places_is_refused_by_name() -> None:
    model = Attention(flex(score_mod=nearer))
    assert_untouched(model, repeated_tokens(2, 64), reason="flex_attention")
