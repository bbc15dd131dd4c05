"""What a merged graph computes twice is computed once; what may not be shared is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from toma_fx.passes.graph.nodes import aten
from toma_fx.passes.rewrite.equal import share_equal_nodes


def shared(fn: Callable[..., Any], *inputs: Tensor) -> tuple[fx.GraphModule, int]:
    """The graph of a function after the pass, and how many nodes have gone."""
    gm = make_fx(fn, pre_dispatch=True)(*inputs)
    before = len(gm.graph.nodes)
    share_equal_nodes(gm.graph)
    gm.graph.lint()
    gm.recompile()
    return gm, before - len(gm.graph.nodes)


def test_chains_are_shared() -> None:
    def fn(x: Tensor, table: Tensor) -> Tensor:
        first = x * table.unsqueeze(0).cos()
        return first + x * table.unsqueeze(0).cos()

    gm, gone = shared(fn, torch.randn(2, 3), torch.randn(3))
    assert gone == 3
    assert len(gm.graph.find_nodes(op="call_function", target=aten.cos.default)) == 1


@pytest.mark.parametrize("numbers", [(1, 1.0), (0.0, -0.0), (1, True)])
def test_numbers_that_only_seem_equal_differ(numbers: tuple[Any, Any]) -> None:
    first, second = numbers
    _, gone = shared(lambda x: torch.add(x, first) * torch.add(x, second), torch.ones(2).long())
    assert gone == 0


def reads_before_and_after(x: Tensor, held: Tensor) -> Tensor:
    before = held.index_select(0, torch.tensor([0])) + x
    held.add_(x)
    return before * (held.index_select(0, torch.tensor([0])) + x)


def reads_views(x: Tensor, held: Tensor) -> Tensor:
    before = held.view(-1)[0] * 2
    held.add_(x)
    return before + held.view(-1)[0] * 2


def makes_what_is_written(x: Tensor, held: Tensor) -> Tensor:
    a, b = torch.zeros_like(x), torch.zeros_like(x)
    a.add_(x)
    return a + b


def returns_both(x: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
    return x + held, (x + held).view(-1)


def draws(x: Tensor, held: Tensor) -> Tensor:
    return torch.rand_like(x) - torch.rand_like(x)


@pytest.mark.parametrize(
    "fn", [reads_before_and_after, reads_views, makes_what_is_written, returns_both]
)
def test_what_may_not_be_shared(fn: Callable[..., Any]) -> None:
    x, held = torch.randn(1, 4), torch.randn(1, 4)
    wanted = fn(x, held.clone())
    gm, _ = shared(fn, x, held.clone())
    found = gm(x, held.clone())
    torch.testing.assert_close(found, wanted)
    if isinstance(found, tuple):
        assert found[0].data_ptr() != found[1].data_ptr()


def test_random_numbers_are_drawn_twice() -> None:
    x = torch.zeros(1, 4)
    gm, gone = shared(draws, x, x)
    assert gone == 0
    assert gm(x, x).abs().max() > 0
