"""Autocast that casts nothing is dropped; any other stays a refusal."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.helpers import (
    SMALL,
    Block,
    assert_exact,
    assert_untouched,
    capture,
    repeated_tokens,
)
from toma_fx import TomaConfig, rewrite


class Cast(Block):
    """A table that is computed under autocast, as rotary embeddings are."""

    def __init__(self, dtype: torch.dtype, enabled: bool) -> None:
        super().__init__()
        self.dtype, self.enabled = dtype, enabled

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        with torch.autocast("cpu", dtype=self.dtype, enabled=self.enabled):
            table = torch.outer(torch.arange(64.0), torch.ones(16)).cos() * 0 + 1
        return super().forward(x * table)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_that_is_switched_off(dtype: torch.dtype) -> None:
    assert_exact(Cast(dtype, False), repeated_tokens(2, 64))


def test_autocast_that_casts_is_refused() -> None:
    reason = "autocast inside the model"
    assert_untouched(Cast(torch.bfloat16, True), repeated_tokens(2, 64), reason=reason)


def test_switching_it_off_matters_where_it_is_on() -> None:
    """The graph is traced under autocast: what is inside would be cast without the pair."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gm, inputs = capture(Cast(torch.bfloat16, False), repeated_tokens(2, 64))
        result = rewrite(gm, inputs, TomaConfig(**SMALL))
    assert result.graph_module is gm
    assert any("autocast inside the model" in note for note in result.report.notes)
