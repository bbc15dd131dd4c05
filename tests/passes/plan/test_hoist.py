"""The token order outside of regions: two gathers a stage, and the same pictures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from tests.helpers import predict
from toma_fx import TomaConfig
from toma_fx.passes.find.find import find
from toma_fx.passes.graph.nodes import aten
from toma_fx.passes.layouts.analysis import Analysis
from toma_fx.passes.normalize.normalize import normalize
from toma_fx.passes.plan.hoist import hoist
from toma_fx.passes.plan.plan import plan
from toma_fx.passes.rewrite.guard_inputs import find_guard_inputs
from toma_fx.passes.rewrite.rewrite import rewrite


class Stack(nn.Module):
    """MLPs in sequence on a folded picture; `between` runs on the stream after the first."""

    def __init__(self, depth: int = 3, width: int = 16, between: Any = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.ups = nn.ModuleList(nn.Linear(width, 32) for _ in range(depth))
        self.downs = nn.ModuleList(nn.Linear(32, width) for _ in range(depth))
        self.between = between

    def forward(self, picture: Tensor) -> Tensor:
        hidden = picture.flatten(2).transpose(1, 2)
        for i in range(len(self.norms)):
            hidden = hidden + self.downs[i](torch.relu(self.ups[i](self.norms[i](hidden))))
            if i == 0 and self.between is not None:
                hidden = self.between(hidden)
        return hidden.transpose(1, 2).reshape(picture.shape)


def run(
    model: nn.Module, *args: Tensor, hoisted: bool, **config: Any
) -> tuple[Tensor, fx.GraphModule]:
    """The result, and the graph that gave it, with or without the pass."""
    graphs: list[fx.GraphModule] = []
    settings = TomaConfig(regions="all", min_tokens=1, **config)

    def backend(gm: fx.GraphModule, inputs: list[Any]) -> Any:
        normal = normalize(gm, inputs)
        analysis = Analysis(normal)
        groups = plan(find(analysis), settings, predict)
        stages = hoist(analysis, groups) if hoisted else []
        guard = find_guard_inputs(analysis, groups, settings)
        graphs.append(rewrite(normal, groups, stages, guard, settings))
        return graphs[0].forward

    torch._dynamo.reset()
    with torch.no_grad():
        return torch.compile(model, backend=backend, fullgraph=True)(*args), graphs[0]


def rewritten(
    model: nn.Module, *args: Tensor, hoisted: bool = True, **config: Any
) -> fx.GraphModule:
    return run(model, *args, hoisted=hoisted, **config)[1]


def gathers(gm: fx.GraphModule) -> int:
    return len(gm.graph.find_nodes(op="call_function", target=aten.index_select.default))


def outputs(model: nn.Module, *args: Tensor, hoisted: bool = True) -> Tensor:
    return run(model, *args, hoisted=hoisted)[0]


PICTURE = (2, 16, 16, 24)


def joined_with_text(hidden: Tensor) -> Tensor:
    """Attention at full length over text and picture, which part again behind it."""
    joined = torch.cat((hidden[:, :5].detach() * 0 + torch.linspace(0, 1, 16), hidden), 1)
    joined = nn.functional.scaled_dot_product_attention(*[joined[:, None]] * 3)[:, 0]
    text, picture = joined.split([5, hidden.shape[1]], 1)
    return picture + text.sum(1, keepdim=True)


@pytest.mark.parametrize("depth", [1, 3, 6])
def test_a_stage_gathers_twice_whatever_its_depth(depth: int) -> None:
    picture = torch.randn(PICTURE)
    assert gathers(rewritten(Stack(depth), picture)) == 2
    assert gathers(rewritten(Stack(depth), picture, hoisted=False)) == 2 * depth


@pytest.mark.parametrize(
    "between",
    [
        None,
        nn.LayerNorm(16),
        lambda hidden: hidden + torch.arange(16.0),
        lambda hidden: hidden * torch.linspace(0, 1, 384)[:, None],  # a table of positions
        lambda hidden: hidden.cumsum(1),  # reads the natural order
        lambda hidden: hidden + hidden.flip(1),
        lambda hidden: nn.functional.scaled_dot_product_attention(*[hidden[:, None]] * 3)[:, 0],
        lambda hidden: torch.cat((hidden[:, :100], hidden[:, 100:] * 2), 1),
        lambda hidden: hidden - hidden.mean(1, keepdim=True),
        joined_with_text,
    ],
)
def test_hoisting_changes_no_result(between: Any) -> None:
    torch.manual_seed(1)
    picture = torch.randn(PICTURE)
    model = Stack(3, between=between)
    torch.testing.assert_close(
        outputs(model, picture), outputs(model, picture, hoisted=False), rtol=1e-5, atol=1e-5
    )


def test_an_operation_in_natural_order_ends_and_begins_the_stage() -> None:
    """Only the reader gets natural order: what follows gathers for itself."""
    model = Stack(2, between=lambda hidden: hidden + hidden.cumsum(1))
    assert gathers(rewritten(model, torch.randn(PICTURE))) == 4


@pytest.mark.parametrize("order", ["stripe", "global"])
def test_an_order_that_is_the_sequence_gathers_nothing(order: str) -> None:
    assert gathers(rewritten(Stack(2), torch.randn(PICTURE), order=order)) == 0


def test_windows_with_pads_are_not_hoisted() -> None:
    """13 × 19 tokens: the slots of padded windows are no permutation."""
    picture = torch.randn(1, 16, 13, 19)
    assert gathers(rewritten(Stack(2), picture)) == 4
