"""Prompts drawn by the small trained generators: plain, and with a share of tokens merged."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from toma_fx.demo.generators import Generator, generate
from toma_fx.demo.pictures import captioned, to_image

PROMPTS = ("red apple", "smiling cat", "watermelon", "green apple", "strawberry", "blueberries")
RATIOS = (0.0, 0.25, 0.5, 0.75)

# Windows of the whole grid's 256 tokens and less are what these generators have.
_OPTIONS: dict[str, Any] = {"regions": "all", "inner_backend": "eager"}
_SCALE, _GAP = 2, 8


@dataclass(frozen=True)
class Drawn:
    """The prompts at one ratio.

    Attributes:
        ratio: share of tokens merged away; 0 is the plain model.
        pictures: `[prompts, 3, height, width]` in [0, 1].
        seconds: a picture, planning included.
    """

    ratio: float
    pictures: Tensor
    seconds: float


def draw(
    generator: Generator,
    prompts: Sequence[str],
    steps: int,
    seed: int,
    ratios: Sequence[float] = RATIOS,
) -> list[Drawn]:
    """Every prompt at every ratio, from the same noise.

    Both models run uncompiled kernel by kernel, the merged one from the rewritten graph: to compile
    each ratio would take minutes, and `make demo` compares compiled speed elsewhere.

    Args:
        generator: trained.
        prompts: in words of the captions that it was trained on.
        steps: denoising steps; time grows in proportion.
        seed: of the first prompt; the others follow it.
        ratios: shares of tokens removed; 0 is the plain model.
    """
    return [_draw(generator, prompts, steps, seed, ratio) for ratio in ratios]


def sheet(prompts: Sequence[str], drawn: Sequence[Drawn]) -> Image.Image:
    """A row for each prompt, a column for each ratio."""
    columns = []
    for one in drawn:
        name = f"{one.ratio:.0%} merged" if one.ratio else "plain"
        cells = [to_image(picture.permute(1, 2, 0), _SCALE) for picture in one.pictures]
        texts = [textwrap.shorten(prompt, 22, placeholder="…") for prompt in prompts]
        cells = [captioned(cell, text) for cell, text in zip(cells, texts, strict=True)]
        columns.append((f"{name}, {1e3 * one.seconds:.0f} ms", cells))
    width, height = columns[0][1][0].size
    size = (len(columns) * (width + _GAP), len(prompts) * (height + _GAP))
    bands = []
    for title, cells in columns:
        band = Image.new("RGB", (width, size[1]), "white")
        for row, cell in enumerate(cells):
            band.paste(cell, (0, row * (height + _GAP)))
        bands.append(captioned(band, title))
    page = Image.new("RGB", (size[0], bands[0].height), "white")
    for place, band in enumerate(bands):
        page.paste(band, (place * (width + _GAP), 0))
    return page


def write_sheet(prompts: Sequence[str], drawn: Sequence[Drawn], file: Path) -> Path:
    """Save the sheet; the folder is created where missing.

    Raises:
        OSError: the file cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet(prompts, drawn).save(file)
    return file


def change(plain: Drawn, merged: Drawn) -> float:
    """Mean absolute difference of two sets of pictures, as a share of the range of a pixel."""
    return float((merged.pictures - plain.pictures).abs().mean())


def _draw(
    generator: Generator, prompts: Sequence[str], steps: int, seed: int, ratio: float
) -> Drawn:
    torch._dynamo.reset()
    model: Any = None
    if ratio:
        options = {"ratio": ratio, "skip_blocks": generator.dense_blocks, **_OPTIONS}
        model = torch.compile(generator.model, backend="toma", options=options)
    seeds = range(seed, seed + len(prompts))
    with torch.no_grad():
        generate(generator, prompts, seeds, 1, model=model)  # traces, and warms up
        start = time.perf_counter()
        pictures = generate(generator, prompts, seeds, steps, model=model)
    return Drawn(ratio, pictures, (time.perf_counter() - start) / len(prompts))
