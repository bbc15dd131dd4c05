"""Steps that rest and steps that compute all: graphs that share one memory, against the hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import fx

from tests.eager_refresh import remembered_by_hand
from tests.remembering import Rewritten, Subject, flux_subject, sdxl_subject, worst
from toma_fx.passes.graph.attentions import is_attention
from toma_fx.passes.graph.nodes import LINEARS
from toma_fx.passes.methods.pace import Computes

SHARE, ALL, NONE = Computes.SHARE, Computes.ALL, Computes.NONE
HALVES = [SHARE, NONE] * 5  # a trend is fitted in the ninth call
DENSE_FIRST = [ALL, SHARE, SHARE, NONE, SHARE, ALL, NONE, SHARE]


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.no_grad():
        yield


@cache
def subject(name: str) -> Subject:
    return {"sdxl": sdxl_subject, "flux": flux_subject}[name](batch=1)


@cache
def graphs(name: str, **options: Any) -> dict[Computes, Rewritten]:
    return subject(name).paced(**options)


# Model, what the hand does, options of the graphs.
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("sdxl", {"scope": "span"}, {}),
    ("sdxl", {"ratio": 0.75, "history": 1}, {"scope": "block"}),
    ("flux", {"keys": "all", "scope": "block"}, {"scope": "block"}),
    ("flux", {"keys": "all"}, {"keys": "auto"}),
]


@pytest.mark.parametrize("paces", [HALVES, DENSE_FIRST], ids=["halves", "dense first"])
@pytest.mark.parametrize(("name", "settings", "options"), CASES)
def test_graphs_of_all_paces_equal_the_hand(
    name: str, settings: dict[str, Any], options: dict[str, Any], paces: Sequence[Computes]
) -> None:
    """Two pictures; the one before ends with a step that rests, or not."""
    same = {key: settings[key] for key in ("keys", "ratio", "history") if key in settings}
    one, run = subject(name), graphs(name, **{**same, **options})
    how = one.by_hand(**settings)
    with remembered_by_hand(one.model, how) as hand:
        for picture in (0, 1):
            how.begin()
            for step, pace in enumerate(paces[: len(paces) - picture]):
                call = one.call(step, picture)
                how.computes = pace
                expected = hand(**call)[0]
                assert worst([run[pace](**call)], [expected]) < 1e-4, (picture, step)


@pytest.mark.parametrize(("name", "gone"), [("sdxl", (80, 16)), ("flux", (19, 3))])
def test_a_graph_that_rests_has_no_region_left(name: str, gone: tuple[int, int]) -> None:
    """SDXL, a block: 4 linears of each attention and 2 behind them, keys of text among them.

    Flux: queries, keys and values of both streams, and what follows on the picture's: 9 of the
    joint block, and 5 of each single one. What computes the gates stays.
    """
    run = graphs(name)
    plain, rests = inside(run[ALL].graph.graph), inside(run[NONE].graph.graph)
    assert (plain[0] - rests[0], plain[1] - rests[1]) == gone
    assert rests[1] == 0


def inside(graph: fx.Graph) -> tuple[int, int]:
    """Linears and attentions."""
    called = list(graph.nodes)
    linears = sum(node.target in LINEARS for node in called)
    return linears, sum(map(is_attention, called))
