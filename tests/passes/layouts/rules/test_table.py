"""An operation without a rule is refused by name; a rule is registered once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.helpers import Block, assert_untouched, repeated_tokens
from toma_fx.passes.layouts.rules import layout_rule, supported_operations

_library = torch.library.Library("toma_fx_tests", "DEF")
_library.define("neighbours(Tensor x) -> Tensor")
_library.impl("neighbours", lambda x: x + x.roll(1, 1), "CompositeExplicitAutograd")
torch.library.register_fake("toma_fx_tests::neighbours", torch.empty_like, lib=_library)


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (lambda block, h: h.roll(1, 1), "aten.roll.default"),
        (lambda block, h: h.flip(1), "aten.flip.default"),
        (lambda block, h: torch.fft.rfft(h, dim=1, n=126).abs()[..., :16], "aten.fft_rfft"),
        (lambda block, h: h.sort(1).values, "aten.sort.default"),
        (lambda block, h: h.topk(16, -1).values, "aten.topk.default"),
        (lambda block, h: h[:, torch.arange(64)], "aten.index.Tensor"),
        (lambda block, h: torch.ops.toma_fx_tests.neighbours(h), "toma_fx_tests.neighbours"),
        (lambda block, h: h + torch.rand_like(h), "aten.rand_like"),
        (lambda block, h: h.cumprod(-1), "aten.cumprod.default"),
        (lambda block, h: h.tril(), "aten.tril"),
        (lambda block, h: torch.cdist(h, h) @ h, "aten.cdist"),
    ],
)
def test_an_operation_without_a_rule_is_named(body: object, name: str) -> None:
    run = assert_untouched(Block(body), repeated_tokens(2, 64), reason=f"no layout rule for {name}")
    assert run.region.status == "refused"


def test_the_reason_names_the_node() -> None:
    run = assert_untouched(
        Block(lambda block, h: h.roll(1, 1)), repeated_tokens(2, 64), reason="aten.roll"
    )
    assert run.region.reason.endswith("(at roll)")


def test_a_second_rule_for_an_operation_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="has a layout rule already"):
        layout_rule(torch.ops.aten.linear.default)(lambda node, flow: None)


def test_supported_operations_are_sorted_names() -> None:
    names = supported_operations()
    assert names == sorted(set(names))
    assert "aten::scaled_dot_product_attention" in names
    assert "aten.linear.default" in names
    assert "aten.roll.default" not in names


def test_an_output_that_reads_merged_tokens_is_refused() -> None:
    class Peek(Block):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            hidden = self.into(self.norm(x)).relu()
            return x + self.out(hidden), hidden

    assert_untouched(Peek(), repeated_tokens(2, 64), reason="output reads a merged tensor")
