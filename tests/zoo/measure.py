"""What becomes of one model: its regions, the reasons of the others, and what changes."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tests.zoo.entries import Entry
from toma_fx import last_report, toma_backend
from toma_fx.passes.methods import METHODS
from toma_fx.passes.plan import plan
from toma_fx.report import RegionReport, general
from toma_fx.windows import cut

ATTENTION = ("self_attention", "joint_attention", "cross_attention", "parallel")
OPTIONS = {"regions": "all", "min_tokens": 32, "window": 4, "ratio": 0.5}
MERGED, KEPT, ZERO = {}, {"temperature": 1e-6}, {"ratio": 0.0}


@torch.no_grad()
def measure(entry: Entry) -> dict[str, Any]:
    """A row of the table.

    `exact` is the strictest test there is for all models alike: the graph is rewritten, every
    order, gather, merge and unmerge in place, but each window keeps all of its tokens. Whatever
    is then different from the plain model is a mistake.
    """
    plain = run(*entry.build())
    found = compiled(entry)
    return {
        "fullgraph": found.fullgraph,
        "attention": sum(r.kind in ATTENTION for r in found.regions if r.status == "merged"),
        "regions": dict(sorted(Counter(map(describe, found.regions)).items())),
        "notes": sorted(set(found.notes)),
        "change": rounded(difference(found.merged, plain)),
        "exact": difference(found.kept, plain) < 1e-4,
        "same at ratio 0": difference(found.zero, plain) < 1e-5,
    }


@dataclass
class Found:
    """Results of the three rewrites of a model, whether it was one graph, and the reports."""

    fullgraph: bool
    reports: list[Any] = field(default_factory=list)
    merged: Any = None
    kept: Any = None
    zero: Any = None

    @property
    def regions(self) -> list[RegionReport]:
        return [region for report in self.reports for region in report.regions]

    @property
    def notes(self) -> list[str]:
        return [note for report in self.reports for note in report.notes]


def compiled(entry: Entry) -> Found:
    """A model that is traced once: every graph is rewritten in three ways, and runs in each."""
    for fullgraph in (True, False):
        model, _ = entry.build()
        found = Found(fullgraph)
        chosen = [0]

        def backend(
            gm: Any, example_inputs: Any, found: Found = found, chosen: list[int] = chosen
        ) -> Any:
            options = {**OPTIONS, **entry.options, "inner_backend": "eager"}
            rewritten = []
            for changes in (MERGED, KEPT, ZERO):
                with keeping_every_token() if changes is KEPT else contextlib.nullcontext():
                    call = toma_backend(gm, example_inputs, options={**options, **changes})
                found.reports += [last_report()] if changes is MERGED else []
                rewritten.append(call)
            return lambda *arguments: rewritten[chosen[0]](*arguments)

        torch._dynamo.reset()
        call = torch.compile(model, backend=backend, fullgraph=fullgraph)
        try:
            for place, name in enumerate(("merged", "kept", "zero")):
                chosen[0] = place
                setattr(found, name, run(call, entry.build()[1], forward=model.forward))
        except (torch._dynamo.exc.Unsupported, torch._dynamo.exc.UserError):
            continue
        if not (fullgraph and any("without fullgraph" in note for note in found.notes)):
            return found
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
    wrong = sum(
        float((a.double() - b.double()).norm() ** 2) for a, b in zip(found, expected, strict=True)
    )
    whole = sum(float(b.double().norm() ** 2) for b in expected)
    assert whole > 0
    assert torch.isfinite(torch.tensor(wrong))
    return (wrong / whole) ** 0.5


def rounded(change: float) -> float:
    """Two digits: more would differ between processors."""
    return float(f"{change:.2g}")
