"""Which windows of a video are nearest to the plain model, at equal tokens a window.

    python -m benchmarks.video_windows --out benchmarks/results/video_windows_cpu

A small Wan of random weights on latents that move like a video: smooth pictures, as rich in detail
as photographs are, that move by a constant way from frame to frame, under a sampler's noise. Every
window holds 64 tokens, so that planning costs the same. Each seed has its own weights, picture,
direction and noise; speeds and noise differ in nothing else. About two minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from rich.console import Console
from torch import Tensor, fx, nn

import toma_fx
from benchmarks.machine import describe, in_words
from tests.zoo.entries import alive
from toma_fx.order import Window

WINDOWS: tuple[Window, ...] = (8, (2, 4, 8), (4, 4, 4), (4, 2, 8), (8, 2, 4))
"""Of 64 tokens; 8 is `(1, 8, 8)` where tiles divide the grid, as they do here."""
SPEEDS = {"still": 0.0, "slow": 0.25, "quick": 2.0, "fast": 6.0}
"""Tokens that a picture moves from one frame of latents to the next. The last leaves most windows
within a frame, so that nothing comes again in them."""
CHANNELS, PATCH, WORDS = 16, 2, 16
_SHARPNESS = 2.0
"""Scale of queries: attention of untrained weights is nearly uniform without it."""

NOTE = """\
‖merged − plain‖ / ‖plain‖ of the output: mean ± standard deviation over the videos of a cell, which
are seeds, and in the first table ratios and shares of noise as well. *Nearest in*: of how many a
window changes the output least. `8` alone is one frame's.

**The weights are random.** Attention follows what tokens look like and where they stand, but has
learned nothing: the order of the windows says which tokens of moving latents are alike; the size of
the change says nothing about a trained model."""


@dataclass(frozen=True)
class Setting:
    """What is measured: sides of the grid of tokens, videos and how much is merged.

    Attributes:
        grid: frames, height and width in tokens; a power of two that every window divides.
        noise: shares of noise in the latents, 0 at the end of sampling and 1 at its beginning.
        seeds: a model, a picture and a direction for each.
    """

    grid: tuple[int, int, int] = (8, 16, 16)
    windows: Sequence[Window] = WINDOWS
    ratios: Sequence[float] = (0.5, 0.75)
    noise: Sequence[float] = (0.1, 0.5)
    seeds: int = 5
    layers: int = 4
    speeds: dict[str, float] = field(default_factory=lambda: dict(SPEEDS))

    @property
    def videos(self) -> list[tuple[str, float]]:
        """Speed and noise of each item of a batch."""
        return [(speed, noise) for speed in self.speeds for noise in self.noise]


def video(grid: tuple[int, int, int], speed: float, seed: int) -> Tensor:
    """`[C, F, H, W]` latents of unit variance, moving by `speed` tokens a frame.

    Amplitudes fall with the frequency, as those of photographs do; the way between frames is a
    shift of phases, exact for any part of a pixel. The canvas has twice the frame's sides, so that
    what leaves the frame does not come back at once.
    """
    frames, height, width = grid
    generator = torch.Generator().manual_seed(seed)
    sides = (2 * PATCH * height, 2 * PATCH * width)
    spectrum = torch.fft.rfft2(torch.randn(CHANNELS, *sides, generator=generator))
    down, across = torch.fft.fftfreq(sides[0])[:, None], torch.fft.rfftfreq(sides[1])
    spectrum = spectrum / (down**2 + across**2).sqrt().clamp_min(1 / max(sides))
    angle = 2 * math.pi * float(torch.rand((), generator=generator))
    way = speed * PATCH * torch.arange(frames)[:, None, None]
    phase = way * (down * math.sin(angle) + across * math.cos(angle))
    moved = torch.fft.irfft2(spectrum[:, None] * torch.polar(torch.ones(()), -2 * math.pi * phase))
    frame = moved[..., : sides[0] // 2, : sides[1] // 2]
    return frame / frame.std((1, 2, 3), keepdim=True)


def model(seed: int, layers: int) -> nn.Module:
    """A small Wan, whose blocks all change what goes through them."""
    torch.manual_seed(seed)
    found = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=32,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=32,
        freq_dim=32,
        ffn_dim=128,
        num_layers=layers,
        rope_max_seq_len=64,
    )
    for module in found.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    with torch.no_grad():
        for block in found.blocks:
            block.attn1.norm_q.weight *= _SHARPNESS
    return alive(found).eval()


def inputs(setting: Setting, seed: int) -> dict[str, Tensor]:
    """A batch of all speeds and all shares of noise, alike in everything else."""
    videos = [video(setting.grid, setting.speeds[speed], seed) for speed, _ in setting.videos]
    share = torch.tensor([noise for _, noise in setting.videos])
    generator = torch.Generator().manual_seed(1000 + seed)
    noise = torch.randn(videos[0].shape, generator=generator)
    mixed = share.view(-1, 1, 1, 1, 1)
    text = torch.randn(1, WORDS, 32, generator=generator)
    return {
        "hidden_states": (1 - mixed) * torch.stack(videos) + mixed * noise,
        "timestep": 1000 * share,
        "encoder_hidden_states": text.expand(len(videos), -1, -1).contiguous(),
    }


def traced(module: nn.Module, given: dict[str, Tensor]) -> tuple[fx.GraphModule, list[Any]]:
    """The graph of a call, and its inputs: traced once, it is merged in many ways."""
    found: list[tuple[fx.GraphModule, list[Any]]] = []

    def collect(gm: fx.GraphModule, examples: Sequence[Any]) -> Any:
        found.append((gm, list(examples)))
        return gm.forward

    torch._dynamo.reset()
    torch.compile(module, backend=collect, fullgraph=True, dynamic=False)(**given)
    (graph,) = found
    return graph


@torch.no_grad()
def measure(setting: Setting) -> list[dict[str, Any]]:
    """A record for each seed, window, ratio and video: the relative change of the output."""
    found = []
    for seed in range(setting.seeds):
        graph, examples = traced(model(seed, setting.layers), inputs(setting, seed))
        plain = graph(*examples)[0]
        for ratio in setting.ratios:
            for window in setting.windows:
                options: dict[str, Any] = {"window": window, "ratio": ratio, "min_tokens": 1}
                config = toma_fx.TomaConfig(**options, regions="all")
                result = toma_fx.rewrite(graph, examples, config)
                changed = result.graph_module(*examples)[0] - plain
                assert len(result.report.merged) == 3 * setting.layers, str(result.report)
                changes = changed.flatten(1).norm(dim=1) / plain.flatten(1).norm(dim=1)
                for (speed, noise), change in zip(setting.videos, changes.tolist(), strict=True):
                    found.append(
                        {
                            "seed": seed,
                            "ratio": ratio,
                            "window": window,
                            "speed": speed,
                            "noise": noise,
                            "change": change,
                        }
                    )
    return found


def markdown(found: dict[str, Any]) -> str:
    """A row for each window, a column for each speed: all beside the first window, then apart."""
    records = found["records"]
    frames, height, width = found["grid"]
    speeds = ", ".join(f"{name} {speed:g}" for name, speed in found["speeds"].items())
    lines = ["# Windows of a video", "", in_words(found), "", NOTE, ""]
    lines += [
        f"{frames} × {height} × {width} tokens, {found['layers']} blocks, {found['seeds']} seeds; "
        f"tokens a frame: {speeds}.",
        "",
    ]
    first = f"## Beside {_named(records[0]['window'])}, at all ratios and shares of noise"
    lines += [first, "", *_table(beside_first(records)), ""]
    for ratio, noise in sorted({(r["ratio"], r["noise"]) for r in records}):
        chosen = [r for r in records if (r["ratio"], r["noise"]) == (ratio, noise)]
        lines += [f"## Ratio {ratio:g}, {noise:.0%} noise", "", *_table(chosen), ""]
    return "\n".join(lines)


def beside_first(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same records, each change as a multiple of the first window's for the same video."""
    first = {_video(r): r["change"] for r in records if r["window"] == records[0]["window"]}
    return [{**r, "change": r["change"] / first[_video(r)]} for r in records]


def _table(records: list[dict[str, Any]]) -> list[str]:
    speeds = list(dict.fromkeys(r["speed"] for r in records))
    lines = [f"| window | {' | '.join(speeds)} | all | nearest in |"]
    lines += ["|---|" + "--:|" * (len(speeds) + 2)]
    best: dict[tuple[Any, ...], dict[str, Any]] = {}
    for record in records:
        at = _video(record)
        best[at] = min(best.get(at, record), record, key=lambda r: float(r["change"]))
    for window in dict.fromkeys(_named(r["window"]) for r in records):
        own = [r for r in records if _named(r["window"]) == window]
        cells = [_spread([r["change"] for r in own if r["speed"] == speed]) for speed in speeds]
        nearest = sum(_named(r["window"]) == window for r in best.values())
        every = _spread([r["change"] for r in own])
        lines.append(f"| {window} | {' | '.join(cells)} | {every} | {nearest} of {len(best)} |")
    return lines


def _video(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(record[name] for name in ("seed", "speed", "noise", "ratio"))


def _named(window: Any) -> str:
    return f"`{window if isinstance(window, int) else tuple(window)}`"


def _spread(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {spread:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=Setting.seeds)
    parser.add_argument("--out", type=Path, help="results, without .json and .md behind the name")
    given = parser.parse_args()
    setting = Setting(seeds=given.seeds)
    found = {**describe(), **vars(setting), "records": measure(setting)}
    if given.out is not None:
        given.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
        given.out.with_suffix(".md").write_text(markdown(found))
    Console(soft_wrap=True).print(markdown(found), highlight=False, markup=False)


if __name__ == "__main__":
    main()
