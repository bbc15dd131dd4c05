"""Numbers of the caller: tensors where they are data, static where they are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.test_backend import Mlp
from toma_fx import last_report


def graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


class Numbered(Mlp):
    """A feed-forward, and what is made of a number beside it."""

    def __init__(self, use: Callable[[Tensor, Any], Tensor]) -> None:
        super().__init__()
        self.use = use

    def forward(self, picture: Tensor, number: Any) -> Tensor:
        return self.use(super().forward(picture), number)


def scalar(x: Tensor, n: Any) -> Tensor:
    return x + torch.tensor(n)


def listed(x: Tensor, n: Any) -> Tensor:
    return x + torch.tensor([[n, 2], [n + 1, n]], dtype=torch.float64).sum()


def arithmetic(x: Tensor, n: Any) -> Tensor:
    return x + torch.tensor([-(n * 3 - 1) / 7 + 0.25])


def reversed_operands(x: Tensor, n: Any) -> Tensor:
    return x + torch.tensor(1000 - n) * torch.tensor(2.5 / (n + 1))


def width(x: Tensor, n: Any) -> Tensor:
    return x[..., : int(n)]


def both(x: Tensor, n: Any) -> Tensor:
    return x[..., : int(n)] + torch.tensor(n)


DATA = (scalar, listed, arithmetic, reversed_operands)


def graphs_of(use: Any, numbers: list[Any]) -> int:
    """How many graphs a merged model takes, on a picture that merging does not change."""
    torch._dynamo.reset()
    model = Numbered(use)
    picture = torch.zeros(1, 16, 16, 16)
    options = {"inner_backend": "aot_eager", "regions": "all"}
    run = torch.compile(model, backend="toma", options=options)
    before = graphs()
    with torch.no_grad():
        found = [run(picture, number) for number in numbers]
        assert last_report().merged
        for number, result in zip(numbers, found, strict=True):
            torch.testing.assert_close(result, model(picture, number), rtol=0, atol=1e-6)
    return graphs() - before


@pytest.mark.filterwarnings("ignore:toma_fx")
@pytest.mark.parametrize("kind", [int, float])
@pytest.mark.parametrize("use", DATA)
def test_data_does_not_compile_anew(use: Any, kind: Any) -> None:
    assert graphs_of(use, [kind(n) for n in (9, 8, 7, 3, 2)]) == 2


@pytest.mark.filterwarnings("ignore:toma_fx")
@pytest.mark.parametrize("use", [width, both])
def test_a_number_that_shapes_a_tensor_is_static(use: Any) -> None:
    assert graphs_of(use, [9, 8, 7]) == 3
