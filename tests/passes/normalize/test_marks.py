"""Sizes that the caller marked dynamic."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from tests.test_backend import Mlp
from toma_fx import TomaWarning, last_report

decorators: Any = torch._dynamo.decorators


def run(picture: torch.Tensor) -> torch.Tensor:
    torch._dynamo.reset()
    options = {"inner_backend": "eager", "regions": "all"}
    with torch.no_grad():
        result: torch.Tensor = torch.compile(Mlp(), backend="toma", options=options)(picture)
    return result


@pytest.mark.parametrize("bounds", [{}, {"min": 2, "max": 512}])
def test_marked_sizes_are_static_after_a_warning(bounds: dict[str, int]) -> None:
    torch.manual_seed(0)
    picture = torch.randn(1, 16, 16, 16)
    torch.manual_seed(0)
    expected = run(picture)
    torch._dynamo.mark_dynamic(picture, 2, **bounds)
    torch.manual_seed(0)
    with pytest.warns(TomaWarning, match="sizes marked dynamic are static"):
        assert torch.equal(run(picture), expected)
    assert last_report().merged


def test_what_dynamo_makes_dynamic_by_itself_needs_no_warning() -> None:
    picture = torch.randn(1, 16, 16, 16)
    torch._dynamo.maybe_mark_dynamic(picture, 2)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "toma_fx: sizes")
        run(picture)
    assert last_report().merged


def test_unbacked_sizes_are_refused() -> None:
    torch.manual_seed(0)
    model, picture = Mlp(), torch.randn(1, 16, 16, 16)
    decorators.mark_unbacked(picture, 2)
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="a size is marked unbacked"):
        result = run(picture)
    with torch.no_grad():
        assert torch.equal(result, model(picture))
