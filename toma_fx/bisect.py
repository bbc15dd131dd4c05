"""Which merged regions make a result wrong: the model is tried with fewer and fewer of them.

As a compiler's minifier cuts a program down to the lines that break it. Each trial compiles the
model anew with some of its regions merged, and asks the caller whether what it gives is wrong.
"""

from __future__ import annotations

import glob
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from toma_fx.backend import last_report, toma_backend
from toma_fx.config import TomaConfig
from toma_fx.ddmin import ddmin
from toma_fx.errors import BisectError
from toma_fx.report import RegionReport, Report

Model = Callable[..., Any]


@dataclass(frozen=True)
class Bisection:
    """The smallest set of regions that was found to be wrong.

    Attributes:
        regions: enough to make the result wrong, and none of them can be left out; in graph
            order. Nothing where the result is right with all regions merged.
        merged: how many regions were merged to begin with.
        trials: how often the model was compiled.
        alone: merges these regions and no others: what shows the failure.
        without: merges all but these.
        cured: whether the result is right with `without`; else there is another such set.
    """

    regions: tuple[RegionReport, ...]
    merged: int
    trials: int
    alone: TomaConfig
    without: TomaConfig
    cured: bool

    def __str__(self) -> str:
        """A line for each region, and how to leave them out."""
        if not self.regions:
            return f"nothing is wrong with {self.merged} regions merged\n"
        verb = "is" if len(self.regions) == 1 else "are"
        lines = [f"{len(self.regions)} of {self.merged} merged regions {verb} enough:"]
        lines += [
            f"  {r.kind}  {r.tokens} → {r.merged_tokens} tokens  {r.module_path or '(the model)'}"
            for r in self.regions
        ]
        patterns = tuple(map(_pattern, self.regions))
        lines.append(
            f"without {'it' if len(self.regions) == 1 else 'them'} the result is right:"
            if self.cured
            else "without them it is still wrong; leave them out and bisect again:"
        )
        lines.append(f"  exclude={patterns!r}")
        return "\n".join((*lines, f"({self.trials} trials)", ""))


def bisect(
    model: Model,
    wrong: Callable[[Model], bool],
    *,
    config: TomaConfig | None = None,
    inner_backend: str = "eager",
    tell: Callable[[int, bool], None] | None = None,
) -> Bisection:
    """Find the merged regions that make a result wrong.

    Gradients are off in all trials. Forgets what `torch.compile` has compiled so far: other
    compiled models of the process compile again at their next call.

    Args:
        model: a module or function that `torch.compile` takes.
        wrong: calls the compiled model that it is given, as often as it likes and with whatever
            it likes, and says whether the outcome is wrong. It has to say the same of the same
            model again: fix the seeds. Errors that it does not catch end the search.
        config: defaults to `TomaConfig()`.
        inner_backend: compiles the rewritten graph. `"eager"` runs it as it is, which is quick
            and shows whatever the passes do; `"inductor"` where only that makes it wrong.
        tell: hears of each trial how many regions it merged, and whether it was wrong.

    Returns:
        The smallest set that was found, after about `2·log₂` of the regions in trials where one
        region is to blame. Regions of one module and kind (a module that is called twice) count
        as one.

    Raises:
        BisectError: merging is not to blame: the result is wrong without it, or nothing merges.
    """
    given = config or TomaConfig()
    trials = _Trials(model, wrong, inner_backend, tell)
    failed = trials.run(given)
    regions = _distinct(trials.report.merged)
    if failed and (not regions or trials.run(replace(given, exclude=("*",)))):
        why = "wrong with nothing merged, too" if regions else "wrong, and no region was merged"
        raise BisectError(f"the result is {why}: look for the reason elsewhere")
    found = ddmin(regions, lambda part: trials.run(_only(given, part))) if failed else ()
    without = replace(given, exclude=(*given.exclude, *map(_pattern, found)))
    cured = not found or not trials.run(without)
    return Bisection(found, len(regions), trials.count, _only(given, found), without, cured)


def change(plain: Any, merged: Any) -> float:
    """How far one result lies from another: the largest relative change of its tensors.

    Args:
        plain: a tensor, or any nest of tensors: what it should be.
        merged: the same nest.

    Returns:
        `‖merged − plain‖ / ‖plain‖` of the tensor where it is largest; infinite where one of
        another shape, or NaN and infinity, stand in place of numbers.
    """
    ours, theirs = (torch.utils._pytree.tree_leaves(result) for result in (plain, merged))
    if len(ours) != len(theirs):
        return float("inf")
    pairs = zip(ours, theirs, strict=True)
    return max((_change(a, b) for a, b in pairs if isinstance(a, torch.Tensor)), default=0.0)


def _change(plain: torch.Tensor, merged: torch.Tensor) -> float:
    if plain.shape != merged.shape or not torch.isfinite(merged).all():
        return float("inf")
    length = plain.double().norm().clamp_min(torch.finfo(torch.float32).tiny)
    return float((merged.double() - plain.double()).norm() / length)


class _Trials:
    """Compiles the model with some regions merged, and asks whether it is wrong."""

    def __init__(
        self,
        model: Model,
        wrong: Callable[[Model], bool],
        inner: str,
        tell: Callable[[int, bool], None] | None,
    ) -> None:
        self.count = 0
        self.report = Report()
        self._model = model
        self._wrong = wrong
        self._inner = inner
        self._tell = tell

    def run(self, config: TomaConfig) -> bool:
        self.count += 1
        self.report = Report()
        fields = {name: getattr(config, name) for name in TomaConfig.field_names()}

        def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Model:
            options = {**fields, "inner_backend": self._inner}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that one of many graphs merges nothing
                compiled = toma_backend(gm, inputs, options=options)
            self.report.extend(last_report())
            return compiled

        torch._dynamo.reset()  # its caches are kept by code, and hold only so many versions
        with torch.no_grad():
            failed = bool(self._wrong(torch.compile(self._model, backend=backend)))
        if self._tell is not None:
            self._tell(len(self.report.merged), failed)
        return failed


def _distinct(regions: Iterable[RegionReport]) -> list[RegionReport]:
    """One region of each that the same pattern names."""
    return list({_pattern(region): region for region in reversed(list(regions))}.values())[::-1]


def _only(config: TomaConfig, regions: Iterable[RegionReport]) -> TomaConfig:
    """Merges these regions, whether they gain or not: it is known that they were merged."""
    patterns = tuple(map(_pattern, regions))
    if not patterns:
        return replace(config, exclude=("*",))
    return replace(config, include=patterns, regions="all", autotune=False)


def _pattern(region: RegionReport) -> str:
    return f"{region.kind}:{glob.escape(region.module_path)}"
