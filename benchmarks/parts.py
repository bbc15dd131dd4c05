"""Where the time of a merged step goes, beside the plain step.

    python -m benchmarks.parts                                  # a stage of SDXL and one of Flux
    python -m benchmarks.parts --models sdxl flux-dev --size 1024    # on a GPU

Profiles whole cycles of ten steps, selections and weighings among them, the contestants in turns;
medians of the steps of a kind. On a CPU these are times of the host; on CUDA those of kernels on
the device, and `launch gaps` is what is left of the timed step. What merging and memory launch on
a GPU, and the bytes that they move, is counted in the code that Inductor generates for one, which
needs triton and no GPU. Writes JSON, a Markdown table and a plot.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from rich.console import Console
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.generated import counted
from benchmarks.machine import describe, in_words
from benchmarks.race.contestants import CONTESTANTS, REFERENCE
from benchmarks.race.group import settle_compilers
from benchmarks.race.heat import SETTLING, laps
from benchmarks.race.models import TITLES, arguments_of, model_of
from benchmarks.race.pace import step_seconds
from benchmarks.race.parts import BACKEND, GAPS, parts_of
from benchmarks.race.plots import wrapped
from benchmarks.race.start import Entry, Setting, SkipError, setting_of, start
from benchmarks.speed import RESULTS, slug

DEFAULT = ["toma", "toma, scope block", "refresh"]


def entries(setting: Setting, names: list[str], ratio: float) -> dict[str, Entry]:
    """Plain and merged contestants over the backend that names kernels after parts."""
    found = {REFERENCE: start(setting, "compile", {"backend": BACKEND}, None)}
    found[REFERENCE].step(0)
    for name in names:
        try:
            options = {**CONTESTANTS[name].options, "inner_backend": BACKEND}
            entry = start(setting, "toma", options, ratio)
            entry.step(0)
            entry.check(entry)
            found[name] = entry
        except SkipError as reason:
            Console().print(f"{name}: {reason}")
    return found


@torch.no_grad()
def measure(
    model: str, size: int, names: list[str], ratio: float, device: torch.device, cycles: int
) -> dict[str, Any]:
    """Parts and timed steps of one model."""
    module = model_of(model, device)
    setting = setting_of(module, arguments_of(model, module, size, size), device)
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
        running = entries(setting, names, ratio)
        for entry in running.values():
            for step in range(1, SETTLING):
                entry.step(step)
        parts = parts_of(running, cycles, device)
        seconds = laps({name: e.step for name, e in running.items()}, cycles, device)
    rows = []
    for name, entry in running.items():
        timed = step_seconds(seconds[name], entry.phases)
        if device.type == "cuda":
            parts[name][GAPS] = max(0.0, timed - sum(parts[name].values()))
        rows.append({"contestant": name, "seconds": timed, "parts": parts[name]})
    return {"model": model, "size": size, "ratio": ratio, "rows": rows}


def markdown(found: dict[str, Any]) -> str:
    """A table for each model: milliseconds and shares."""
    lines = ["# Where the time of a step goes", "", in_words(found), ""]
    for result in found["results"]:
        size, names = result["size"], list(result["rows"][0]["parts"])
        lines += [f"## {TITLES[result['model']]}, {size}×{size}, ratio {result['ratio']:g}", ""]
        lines += ["| part | " + " | ".join(r["contestant"] for r in result["rows"]) + " |"]
        lines += ["|" + "---|" * (1 + len(result["rows"]))]
        for part in names:
            cells = [_cell(row, part) for row in result["rows"]]
            lines.append(f"| {part} | " + " | ".join(cells) + " |")
        timed = [f"{row['seconds'] * 1e3:.1f} ms" for row in result["rows"]]
        lines += ["| timed step | " + " | ".join(timed) + " |", ""]
    if launches := found.get("launches"):
        lines += ["# What a step launches", "", *counted.NOTES, "", *counted.tables(launches)]
    return "\n".join(lines)


def write(found: dict[str, Any], stem: Path) -> None:
    """The results as JSON and as Markdown."""
    stem.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    stem.with_suffix(".md").write_text(markdown(found))


def _cell(row: dict[str, Any], part: str) -> str:
    seconds, total = row["parts"][part], sum(row["parts"].values())
    return f"{seconds * 1e3:.2f} ms ({seconds / total:.1%})"


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Stacked bars: plain beside merged."""
    size = (5.5 * len(results) + 1.5, 4.5)
    figure, axes = plt.subplots(1, len(results), figsize=size, layout="constrained", squeeze=False)
    for place, result in zip(axes.flat, results, strict=True):
        names = [row["contestant"] for row in result["rows"]]
        below = [0.0] * len(names)
        for part in result["rows"][0]["parts"]:
            height = [row["parts"][part] * 1e3 for row in result["rows"]]
            place.bar(names, height, bottom=below, label=part)
            below = [a + b for a, b in zip(below, height, strict=True)]
        place.set(title=wrapped(TITLES[result["model"]]), ylabel="ms a step")
        place.tick_params(axis="x", rotation=30)
    parts, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(parts[::-1], labels[::-1], loc="outside center right")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--on", choices=("cpu", "cuda"), help="default: a GPU where there is one")
    parser.add_argument("--models", nargs="+", choices=list(TITLES), metavar="MODEL")
    parser.add_argument("--size", type=int, help="pixels, one side")
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--contestants", nargs="+", default=DEFAULT)
    parser.add_argument(
        "--cycles", type=int, default=2, help="cycles of ten steps, profiled and timed"
    )
    parser.add_argument("--no-launches", action="store_true", help="count no launches")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    given = parser.parse_args()
    device = torch.device(given.on or ("cuda" if torch.cuda.is_available() else "cpu"))
    full = device.type == "cuda"
    models = given.models or (["sdxl", "flux-dev"] if full else ["sdxl-stage", "flux-stage"])
    size = given.size or (1024 if full else 512)
    stem = given.out / f"parts_{slug(device)}"
    given.out.mkdir(parents=True, exist_ok=True)
    settle_compilers(device)
    found: dict[str, Any] = {**describe(), "results": []}
    for model in models:
        one = measure(model, size, given.contestants, given.ratio, device, given.cycles)
        found["results"].append(one)
        write(found, stem)  # after each model: an interruption loses only what was running
        plot(found["results"], stem.with_suffix(".png"))
    if not given.no_launches:
        names = [REFERENCE, *given.contestants]
        found["launches"] = list(counted.measure(list(counted.MODELS), names, given.ratio))
        write(found, stem)
    Console(soft_wrap=True).print(markdown(found), highlight=False)


if __name__ == "__main__":
    main()
