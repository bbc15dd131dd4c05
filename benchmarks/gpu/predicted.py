"""What the race should show, computed from a data sheet before anything is measured.

    python -m benchmarks.gpu.predicted --device h100 --out benchmarks/results/race_predicted_h100

Full-size models on the meta device, every region merged, as in the race. The numbers follow from
the profile of the device and its stated shares of the data sheet's peaks; a measurement tests them,
and not the other way round.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx

import toma_fx
from benchmarks.machine import describe, in_words
from benchmarks.race.contestants import CONTESTANTS
from benchmarks.race.models import TITLES, arguments_of, preset_of
from toma_fx.cli.presets import build
from toma_fx.config import METHODS, TomaConfig
from toma_fx.devices import PROFILES, DeviceProfile
from toma_fx.errors import ConfigError

RATIOS = (0.25, 0.5, 0.75)


def configs(
    names: Sequence[str], ratios: Sequence[float], device: str
) -> Iterator[tuple[str, TomaConfig]]:
    """The contestants that merge, at the ratios that they can."""
    for ratio in ratios:
        for name in names:
            options = {"ratio": ratio, "regions": "all", "device": device}
            try:
                yield name, TomaConfig(**options, **CONTESTANTS[name].options)
            except ConfigError:
                continue  # a method whose cells lose other shares


def predict(
    model: str, side: int, wanted: Sequence[tuple[str, TomaConfig]]
) -> list[dict[str, Any]]:
    """One model at one size: traced once, planned for each configuration."""
    found: list[dict[str, Any]] = []

    def backend(gm: fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        for name, config in wanted:
            report = toma_fx.rewrite(gm, examples, config).report
            found.append({"model": model, "side": side, "contestant": name, **_row(report, config)})
            print(
                f"{model} {side}² {name} {config.ratio:g}: {found[-1]['speedup']:.2f}×", flush=True
            )
        return gm.forward

    module = build(preset_of(model), torch.device("meta"), torch.bfloat16)
    arguments = arguments_of(model, module, side, side)
    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(module, backend=backend, fullgraph=True, dynamic=False)(**arguments)
    return found


def _row(report: toma_fx.Report, config: TomaConfig) -> dict[str, Any]:
    forecast = report.forecast
    assert forecast is not None
    return {
        "ratio": config.ratio,
        "merged": f"{len(report.merged)}/{len(report.regions)}",
        "seconds_plain": forecast.seconds_before,
        "seconds": forecast.seconds_after,
        "speedup": forecast.speedup,
    }


def replaced(rows: list[dict[str, Any]], anew: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows in their order, those that were predicted again in place of the old ones."""

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["model"], row["side"], row["contestant"], row["ratio"]

    merged = {key(row): row for row in rows} | {key(row): row for row in anew}
    return list(merged.values())


def assumptions(profile: DeviceProfile) -> list[str]:
    """What the numbers rest on."""
    rates = profile.half
    return [
        f"Device: {profile.source}.",
        f"Assumed of it, in bfloat16: linears {rates.linear / 1e12:.0f} TFLOP/s, attention "
        f"{rates.attention / 1e12:.0f}, convolutions {rates.convolution / 1e12:.0f}, the small "
        f"products of merging {rates.batched / 1e12:.0f}; elementwise kernels "
        f"{profile.bandwidth / 1e9:.0f} GB/s; {profile.launch * 1e6:.0f} µs a kernel.",
        "A product takes the slower of its FLOPs and its bytes; nothing overlaps; no caches.",
        "Batches as pipelines use them: two items for SDXL, one for Flux.1-dev.",
    ]


def markdown(found: dict[str, Any]) -> str:
    lines = ["# The race as predicted", "", in_words(found), ""]
    lines += [f"- {text}" for text in found["assumptions"]]
    for model, side in dict.fromkeys((row["model"], row["side"]) for row in found["rows"]):
        rows = [row for row in found["rows"] if (row["model"], row["side"]) == (model, side)]
        plain = rows[0]["seconds_plain"] * 1e3
        lines += ["", f"## {TITLES[model]}, {side}²: a plain step of {plain:.1f} ms", ""]
        lines += ["| contestant | ratio | step | speedup |", "|---|---|---|---|"]
        lines += [
            f"| {row['contestant']} | {row['ratio']:g} | {row['seconds'] * 1e3:.1f} ms | "
            f"{row['speedup']:.2f}× |"
            for row in rows
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", choices=PROFILES, default="h100")
    parser.add_argument("--models", nargs="+", choices=TITLES, default=["sdxl", "flux-dev"])
    parser.add_argument("--sides", nargs="+", type=int, default=[1024, 2048])
    parser.add_argument("--ratios", nargs="+", type=float, default=list(RATIOS))
    merging = [name for name, found in CONTESTANTS.items() if found.how == "toma"]
    plain = ["toma", "toma, scope block", *(n for n in merging if n in METHODS[1:])]
    parser.add_argument("--contestants", nargs="+", choices=merging, default=plain)
    parser.add_argument("--out", type=Path, help="path without suffix")
    parser.add_argument("--again", action="store_true", help="keep the other rows that are there")
    given = parser.parse_args()
    if given.again and not given.out:
        parser.error("--again needs --out: the file whose other rows it keeps")
    wanted = list(configs(given.contestants, given.ratios, given.device))
    found = {**describe(), "assumptions": assumptions(PROFILES[given.device]), "rows": []}
    if given.again:
        found["rows"] = json.loads(given.out.with_suffix(".json").read_text())["rows"]
    for model in given.models:
        for side in given.sides:
            found["rows"] = replaced(found["rows"], predict(model, side, wanted))
            if given.out:
                given.out.parent.mkdir(parents=True, exist_ok=True)
                given.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
                given.out.with_suffix(".md").write_text(markdown(found))
    print(markdown(found))


if __name__ == "__main__":
    main()
