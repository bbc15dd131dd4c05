"""Gates that all tokens share: which lie before an exit, and which of them the call moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers import CHANNELS, capture
from toma_fx.passes.find.find import find
from toma_fx.passes.find.region import Region
from toma_fx.passes.graph.nodes import aten
from toma_fx.passes.layouts.analysis import Analysis
from toma_fx.passes.normalize.normalize import normalize

MUL, CAST = aten.mul.Tensor, aten.to.dtype
Added = Callable[["Gated", Tensor, Tensor], Tensor]


class Gated(nn.Module):
    """`x + added(f(x), time)`."""

    def __init__(self, added: Added) -> None:
        super().__init__()
        self.added = added
        self.norm = nn.LayerNorm(CHANNELS)
        self.into, self.out, self.gate = (nn.Linear(CHANNELS, CHANNELS) for _ in range(3))
        self.scale = nn.Parameter(torch.rand(CHANNELS))
        self.places = nn.Parameter(torch.rand(64, CHANNELS))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return x + self.added(self, self.out(F.gelu(self.into(self.norm(x)))), time)

    def of(self, time: Tensor) -> Tensor:
        return self.gate(time).unsqueeze(1)


def found(added: Added) -> Region:
    gm, inputs = capture(Gated(added).eval(), torch.randn(2, 64, CHANNELS), torch.rand(2, CHANNELS))
    (region,) = find(Analysis(normalize(gm, inputs)), None)
    assert region.status == "merged"
    return region


CASES: dict[str, tuple[Added, list[Any], bool]] = {
    "none": (lambda m, y, t: y, [], False),
    "of the timestep": (lambda m, y, t: m.of(t) * y, [MUL], True),
    "behind the other operand": (lambda m, y, t: y * m.of(t).tanh(), [MUL], True),
    "learned": (lambda m, y, t: m.scale * y, [MUL], False),
    "learned, then of the timestep": (lambda m, y, t: m.of(t) * (m.scale * y), [MUL] * 2, True),
    "in more digits": (
        lambda m, y, t: (y.double() * m.of(t).double()).float(),
        [CAST, MUL, CAST],
        True,
    ),
    "a cast alone": (lambda m, y, t: y.double().float(), [], False),
    # Not the same for all tokens, or not a factor.
    "for each token": (lambda m, y, t: m.places * y, [], False),
    "a shift": (lambda m, y, t: y + m.of(t), [], False),
    "of itself": (lambda m, y, t: y * y, [], False),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_computed_and_the_gates_behind_it(name: str) -> None:
    added, expected, moves = CASES[name]
    region = found(added)
    (exit,) = region.exits
    computed, *gates = region.added[exit]
    place = region.steps[exit].exit
    assert place is not None
    assert [gate.target for gate in gates] == expected
    assert [computed, *gates][-1] is exit.args[place]
    assert all(before in gate.args for before, gate in zip([computed, *gates], gates, strict=False))
    assert region.gate_moves == moves
