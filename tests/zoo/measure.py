"""What becomes of one model: its regions, the reasons of the others, and what changes."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tests.zoo.entries import Entry
from toma_fx import TomaConfig, last_report, toma_backend
from toma_fx.passes.plan import plan
from toma_fx.passes.methods import METHODS
from toma_fx.report import RegionReport, general
from toma_fx.windows import cut

ATTENTION = ("self_attention", "joint_attention", "cross_attention", "parallel")
OPTIONS = {"regions": "all", "min_tokens": 32, "window": 4, "ratio": 0.5}


@torch.no_grad()
def measure(entry: Entry) -> dict[str, Any]:
    """A row of the table.

    `exact` is the strictest test there is for all models alike: the graph is rewritten, every
    order, gather, merge and unmerge in place, but each window keeps all of its tokens. Whatever
    is then different from the plain model is a mistake.
    """
    plain = run(*entry.build())
    merged, fullgraph, regions, notes = compiled(entry)
    with keeping_every_token():
        kept = compiled(entry, temperature=1e-6)[0]
    zero = compiled(entry, ratio=0.0)[0]
    return {
        "fullgraph": fullgraph,
        "attention": sum(r.kind in ATTENTION for r in regions if r.status == "merged"),
        "regions": dict(sorted(Counter(map(describe, regions)).items())),
        "notes": sorted(set(notes)),
        "change": rounded(difference(merged, plain)),
        "exact": difference(kept, plain) < 1e-4,
        "same at ratio 0": difference(zero, plain) < 1e-5,
    }


def compiled(entry: Entry, **options: Any) -> tuple[Any, bool, list[RegionReport], list[str]]:
    """The result, whether it was one graph, and what the reports of all graphs say."""
    for fullgraph in (True, False):
        model, inputs = entry.build()
        reports: list[Any] = []

        def backend(gm: Any, example_inputs: Any, reports: list[Any] = reports) -> Any:
            chosen = {**OPTIONS, **entry.options, **options, "inner_backend": "aot_eager"}
            result = toma_backend(gm, example_inputs, options=chosen)
            reports.append(last_report())
            return result

        torch._dynamo.reset()
        call = torch.compile(model, backend=backend, fullgraph=fullgraph)
        try:
            result = run(call, inputs, forward=model.forward)
        except torch._dynamo.exc.Unsupported:
            continue
        regions = [region for report in reports for region in report.regions]
        return result, fullgraph, regions, [note for report in reports for note in report.notes]
    raise AssertionError("without fullgraph Dynamo breaks graphs instead of raising")


def run(model: Callable[..., Any], inputs: dict[str, Any], forward: Any = None) -> Any:
    """The tensors that a call returns; random numbers are the same at every call."""
    parameters = inspect.signature(forward or getattr(model, "forward", model)).parameters
    if "return_dict" in parameters:
        inputs = {**inputs, "return_dict": False}
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = model(**inputs)
    return [leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, Tensor)]


@contextlib.contextmanager
def keeping_every_token() -> Iterator[None]:
    """Plans whose windows have as many destinations as tokens."""
    keeping = dataclasses.replace(
        METHODS["toma"], windows=lambda tokens, size, config: cut(tokens, size, 0.0)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, "toma", keeping)
        patch.setattr(plan, "_removes_tokens", lambda windows: True)
        yield


def describe(region: RegionReport) -> str:
    """`self_attention 288: merged`, with a reason where there is one."""
    reason = f" ({general(region.reason)})" if region.reason else ""
    return f"{region.kind} {region.tokens}: {region.status}{reason}"


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """‖found − expected‖ / ‖expected‖ over all results."""
    assert [t.shape for t in found] == [t.shape for t in expected]
    wrong = sum(float((a.double() - b.double()).norm() ** 2) for a, b in zip(found, expected))
    whole = sum(float(b.double().norm() ** 2) for b in expected)
    assert whole > 0 and torch.isfinite(torch.tensor(wrong))
    return (wrong / whole) ** 0.5


def rounded(change: float) -> float:
    """Two digits: more would differ between processors."""
    return float(f"{change:.2g}")
