"""What `toma-fx export` and `toma-fx run-package` do, with plain arguments."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from toma_fx.ahead.export import export
from toma_fx.ahead.load import LoadedModel, load
from toma_fx.ahead.package import Entry
from toma_fx.ahead.signature import Leaf, dtype_of
from toma_fx.config import TomaConfig
from toma_fx.errors import CallError
from toma_fx.report import seconds_text


def export_command(
    model: nn.Module,
    calls: Sequence[Mapping[str, Any]],
    path: str | Path,
    config: TomaConfig | None = None,
    compile_options: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> Path:
    """Export a model and say what became of it.

    Args:
        model: in eval mode, on its device.
        calls: keyword arguments of one call for each resolution, at least one.
        path: of the package, ends in `.pt2`.
        config: defaults to `TomaConfig()`.
        compile_options: options of Inductor.
        console: where to print.

    Raises:
        ExportError, ConfigError: as `toma_fx.export`.
    """
    console = console or Console()
    first, *others = calls
    with console.status("exporting and compiling: minutes for a large model"):
        start = time.perf_counter()
        written = export(
            model,
            (),
            first,
            path=path,
            config=config,
            also=[((), call) for call in others],
            compile_options=compile_options,
        )
        seconds = time.perf_counter() - start
    size = written.stat().st_size / 2**20
    entries = f"{len(calls)} {'entry' if len(calls) == 1 else 'entries'}"
    console.print(f"{written}: {size:.1f} MiB, {entries}, {seconds_text(seconds)}")
    return written


def run_package_command(
    path: str | Path,
    steps: int = 10,
    inputs: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> LoadedModel:
    """Load a package, which runs its native code, and time denoising steps of random numbers.

    The timestep falls from step to step, so that plans are made on their schedule.

    Args:
        path: the `.pt2` file; load only what you trust.
        steps: calls of each entry, one picture.
        inputs: keyword arguments of a call, instead of random numbers for every entry.
        console: where to print.

    Raises:
        PackageError, FileNotFoundError: as `toma_fx.load`.
        CallError: `inputs` do not fit the package.
    """
    console = console or Console()
    start = time.perf_counter()
    package = load(path)
    loading = time.perf_counter() - start
    about, versions = package.metadata, package.metadata["versions"]
    console.print(
        f"{about['model']}, ratio {about['ratio']:g}, {about['device']}, torch "
        f"{versions['torch']}; loaded in {seconds_text(loading)}"
    )
    entries = [Entry.from_dict(entry) for entry in about["entries"]]
    table = Table("entry", "inputs", "first step", "later steps (median)")
    for entry in entries if inputs is None else [None]:
        call = inputs if entry is None else random_call(entry)
        seconds = _timed(package, call or {}, steps)
        shapes = ", ".join(f"{leaf.path} {list(leaf.shape or ())}" for leaf in _tensors(entry))
        later = seconds_text(statistics.median(seconds[1:])) if steps > 1 else ""
        table.add_row(entry.name if entry else "", shapes, seconds_text(seconds[0]), later)
    console.print(table)
    stats = package.stats()
    console.print(
        f"{stats.steps} steps: {stats.selections} selections, {stats.weighings} weighings, "
        f"{stats.reuses} reuses"
    )
    return package


def random_call(entry: Entry) -> dict[str, Any]:
    """Keyword arguments of random numbers in the shapes of an entry."""
    call: dict[str, Any] = {}
    for leaf in entry.call.leaves:
        name, *keys = leaf.path.replace("']", "").split("['")
        place = call
        for key, following in zip([name, *keys], keys, strict=False):
            if not following.isidentifier():
                raise CallError(f"no random numbers for {leaf.path}: give inputs")
            place = place.setdefault(key, {})
        place[(keys or [name])[-1]] = _random(leaf)
    return call


def _random(leaf: Leaf) -> Any:
    if leaf.shape is None:
        return leaf.value
    dtype = dtype_of(leaf)
    if not dtype.is_floating_point:
        return torch.zeros(leaf.shape, dtype=dtype, device=leaf.device)
    return torch.randn(leaf.shape, dtype=dtype, device=leaf.device)


def _tensors(entry: Entry | None) -> list[Leaf]:
    return entry.call.tensors if entry is not None else []


def _timed(package: LoadedModel, call: Mapping[str, Any], steps: int) -> list[float]:
    """Seconds of each step; a timestep, where the call has one, falls."""
    seconds = []
    timestep = call.get("timestep")
    for step in range(steps):
        given = dict(call)
        if isinstance(timestep, Tensor):
            given["timestep"] = torch.full_like(timestep, 1 - step / steps)
        start = time.perf_counter()
        package(**given)
        if package.metadata["device"] == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds
