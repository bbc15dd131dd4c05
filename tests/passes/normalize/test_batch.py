"""Which symbol is the batch, and what is known of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from toma_fx.passes.normalize.batch import (
    Batch,
    find_batch,
    hints,
    specialise,
    symbolic,
    with_sizes,
)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def seen(
    model: Callable[..., Any], *inputs: Tensor, look: Callable[[Sequence[Any]], Any]
) -> list[Any]:
    """What a look at the inputs of each graph finds, where all sizes are symbols."""
    found = []

    def backend(gm: fx.GraphModule, given: Sequence[Any]) -> Callable[..., Any]:
        found.append(look(symbolic(gm, given)))
        return gm.forward

    torch.compile(model, backend=backend, dynamic=True)(*inputs)
    return found


def batch_of(model: Callable[..., Any], *inputs: Tensor) -> Batch | None:
    (found,) = seen(model, *inputs, look=find_batch)
    return found  # type: ignore[no-any-return]


def both(picture: Tensor, text: Tensor) -> Tensor:
    return picture.sum(1) + text.sum(1)


def test_the_first_axis_of_several_inputs_is_the_batch() -> None:
    found = batch_of(both, torch.randn(3, 64, 8), torch.randn(3, 5, 8))
    assert found is not None
    assert found.size == 3
    assert (found.other - found.size) % 2 == 0


def test_a_symbol_that_is_another_size_too_is_none() -> None:
    """As many items as channels: Dynamo takes one symbol for both."""
    assert batch_of(both, torch.randn(8, 64, 8), torch.randn(8, 5, 8)) is None


def test_a_single_item_is_static() -> None:
    assert batch_of(both, torch.randn(1, 64, 8), torch.randn(1, 5, 8)) is None


def test_another_batch_fulfils_what_the_model_asked() -> None:
    def few(picture: Tensor) -> Tensor:
        return picture + 1 if picture.shape[0] < 20 else picture - 1

    found = batch_of(few, torch.randn(3, 64, 8))
    assert found is not None
    assert found.other < 20


def test_a_model_that_asks_for_one_size_has_no_other() -> None:
    def odd(picture: Tensor) -> Tensor:
        return picture + 1 if picture.shape[0] < 4 else picture - 1

    assert batch_of(odd, torch.randn(3, 64, 8)) is None


def test_numbers_for_symbols_leave_no_guard() -> None:
    def look(inputs: Sequence[Any]) -> list[Any]:
        static = with_sizes(inputs, hints(inputs))
        return [tuple(value.shape) for value in static if isinstance(value, Tensor)]

    sizes = seen(both, torch.randn(3, 64, 8), torch.randn(3, 5, 8), look=look)
    assert sizes == [[(3, 64, 8), (3, 5, 8)]]
    assert all(isinstance(n, int) for shape in sizes[0] for n in shape)


def test_all_other_sizes_become_static() -> None:
    compiled = []

    def backend(gm: fx.GraphModule, given: Sequence[Any]) -> Callable[..., Any]:
        inputs = symbolic(gm, given)
        batch = find_batch(inputs)
        compiled.append(batch)
        specialise(inputs, batch.symbol if batch is not None else None)
        return gm.forward

    run = torch.compile(both, backend=backend, dynamic=True)
    for items, tokens in ((3, 64), (5, 64), (7, 64), (5, 32)):
        run(torch.randn(items, tokens, 8), torch.randn(items, 6, 8))
    assert len(compiled) == 2
