"""Every graph has a count of its own, what is removed is freed, and plain is never silent."""

from __future__ import annotations

import gc
import warnings
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from tests.diffusers.door import EAGER, Fold, Other, config, fresh, picture
from tests.test_soak import live_tensors
from toma_fx import LimitWarning, PlainModelWarning, TomaWarning, last_report, reuse_stats
from toma_fx.diffusers import apply, disable, enable, remove, status

__all__ = ["fresh"]  # the fixture of these tests


def states(model: nn.Module) -> list[tuple[str, str]]:
    return [(graph.graph, graph.state) for graph in status(model).graphs]


def test_the_ninth_graph_merges_like_the_first() -> None:
    """Twelve sizes and twelve ratios in one process, then a model of another class."""
    model, other = Fold(), Other(1)
    sizes = [picture(width) for width in range(8, 32, 2)]
    plain = [model(size) for size in sizes]
    apply(model, config(), **EAGER)
    for size, without in zip(sizes, plain, strict=True):
        assert not torch.equal(model(size), without)
    (row,) = status(model).graphs
    assert (row.state, row.sizes) == ("merged", tuple(tuple(size.shape) for size in sizes))
    remove(model)
    results = [plain[0]]
    for removed in range(1, 13):  # of the 16 tokens of a window
        enable(model, config(ratio=removed / 16), **EAGER)
        results.append(model(sizes[0]))
        assert states(model) == [("merged", "merged")]
    assert all(not torch.equal(a, b) for i, a in enumerate(results) for b in results[:i])
    disable(model)
    without = other(sizes[0])
    apply(other, config(), **EAGER)
    assert not torch.equal(other(sizes[0]), without)
    assert states(other) == [("merged", "merged")]
    assert torch.equal(model(sizes[0]), plain[0])


class Kept:
    """An inner backend that knows which of its graphs are alive."""

    def __init__(self) -> None:
        self.graphs: list[weakref.ref[torch.fx.GraphModule]] = []

    def __call__(self, gm: torch.fx.GraphModule, _: Any) -> Any:
        self.graphs.append(weakref.ref(gm))
        return gm.forward

    def alive(self) -> int:
        gc.collect()
        gc.collect()  # graphs are cycles themselves
        return sum(graph() is not None for graph in self.graphs)


def test_remove_frees_what_was_compiled() -> None:
    """Graphs, plans and what Dynamo keeps; a second round leaves no tensor more."""
    model, backend = Fold(), Kept()

    def round_trip() -> int:
        apply(model, config(), options={"inner_backend": backend})
        for width in (8, 16):
            model(picture(width), torch.tensor(9))
        assert reuse_stats(model).groups == backend.alive() == 2
        remove(model)
        assert reuse_stats(model).groups == backend.alive() == 0
        return live_tensors()

    assert round_trip() == round_trip()
    assert len(backend.graphs) == 4


def test_a_model_that_goes_takes_its_graphs_along() -> None:
    model, backend = Fold(), Kept()
    apply(model, config(), options={"inner_backend": backend})
    model(picture())
    gone = weakref.ref(model)
    del model
    assert backend.alive() == 0
    assert gone() is None


def test_behind_its_limit_a_graph_is_plain_and_says_so_once() -> None:
    model = Fold()
    plain = [model(picture(width)) for width in (8, 12, 16, 20)]
    apply(model, config(), recompile_limit=2, **EAGER)
    results = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TomaWarning)
        results = [model(picture(width)) for width in (8, 12, 16, 20)]
    same = [torch.allclose(a, b, atol=1e-6) for a, b in zip(results, plain, strict=True)]
    assert same == [False, False, True, True]
    (warning,) = (entry.message for entry in caught if isinstance(entry.message, LimitWarning))
    assert (warning.limit, warning.value) == ("recompile_limit", 2)
    assert "1×16×16×16" in warning.reason
    assert "recompile_limit=8" in str(warning)
    assert "recompile_limit (2) is met" in last_report().plain
    merged, refused = status(model).graphs
    assert (merged.state, refused.state) == ("merged", "plain")
    assert refused.sizes == ((1, 16, 16, 16), (1, 16, 16, 20))
    assert "recompile_limit (2)" in refused.reason
    assert "recompile_limit (2)" in str(status(model))


class Chatty(Fold):
    """With a word that is part of the graph: every other one is another graph."""

    def forward(self, sample: torch.Tensor, sharpness: str = "") -> torch.Tensor:
        return self.fold(sample, 1) * len(sharpness)


def test_one_size_may_have_many_graphs_up_to_the_limit() -> None:
    """What Dynamo counts, it counts for this size alone."""
    if "recompile_limit" not in torch.compile.__kwdefaults__:
        pytest.skip("this torch has one limit for all")
    model = Chatty()
    apply(model, config(), recompile_limit=3, **EAGER)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TomaWarning)
        for sharpness in range(5):
            result = model(picture(), str(sharpness))
    (warning,) = (entry.message for entry in caught if isinstance(entry.message, LimitWarning))
    assert (warning.limit, warning.value) == ("recompile_limit", 3)
    assert "sharpness" in warning.reason
    (row,) = status(model).graphs
    assert row.state == "plain"
    assert "sharpness" in row.reason
    remove(model)
    assert torch.allclose(result, model(picture(), "4"), atol=1e-6)


def test_code_that_is_switched_off_is_said() -> None:
    model = Fold()
    plain = model(picture())
    apply(model, config(), **EAGER)
    with torch.compiler.set_stance("force_eager"):
        with pytest.warns(PlainModelWarning, match="switched off"):
            result = model(picture())
        assert torch.equal(result, plain)
        assert "switched off" in status(model).graphs[0].reason
    model(picture())
    assert states(model) == [("merged", "merged")]


def test_what_cannot_merge_is_plain_with_its_reason() -> None:
    model = Fold()
    apply(model, config(min_tokens=10_000), **EAGER)
    assert [(row.state, row.sizes) for row in status(model).graphs] == [("not compiled yet", ())]
    model(picture())
    (row,) = status(model).graphs
    assert row.state == "plain"
    assert "min_tokens" in row.reason
    assert not status(model).merged
    assert "min_tokens" in str(status(model))


@pytest.mark.parametrize("number", [int, float])
def test_timesteps_that_are_numbers_compile_once(number: Any) -> None:
    model, other = Fold(), Fold()
    apply(model, config(), **EAGER)
    apply(other, config(), **EAGER)
    before = torch._dynamo.utils.counters["toma_fx"]["graphs_rewritten"]
    for step in (9, 8, 7, 1, 0):
        given = picture(seed=step)
        assert torch.equal(model(given, number(step)), other(given, torch.tensor([number(step)])))
    assert torch._dynamo.utils.counters["toma_fx"]["graphs_rewritten"] == before + 2
    assert reuse_stats(model).selections == reuse_stats(other).selections == 2


def test_marks_of_dynamic_sizes_are_no_error() -> None:
    model = Fold()
    apply(model, config(), **EAGER)
    expected = model(picture())
    marked = picture()
    torch._dynamo.mark_dynamic(marked, 3)
    with pytest.warns(TomaWarning, match="sizes marked dynamic are static"):
        assert torch.equal(model(marked), expected)
    assert len(status(model).graphs[0].sizes) == 1
