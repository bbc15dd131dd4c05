"""Prompts drawn by the small trained generators: plain, and with a share of tokens merged."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from toma_fx.backend import last_report
from toma_fx.demo.generators import Generator, generate
from toma_fx.demo.pictures import INK, PAPER, to_image

PROMPTS = ("red apple", "smiling cat", "watermelon", "green apple", "strawberry", "blueberries")
RATIOS = (0.0, 0.25, 0.5, 0.75)

# Windows of the whole grid's 256 tokens and less are what these generators have.
_OPTIONS: dict[str, Any] = {"regions": "all", "inner_backend": "eager"}
_SCALE, _GAP, _TEXT = 2, 8, 14
_MARGIN, _HEAD = 72, 28


@dataclass(frozen=True)
class Drawn:
    """The prompts at one ratio.

    Attributes:
        ratio: share of tokens merged away; 0 is the plain model.
        pictures: `[prompts, 3, height, width]` in [0, 1].
        left: share of the FLOPs of attention and MLP that is left.
    """

    ratio: float
    pictures: Tensor
    left: float

    @property
    def title(self) -> str:
        """`50% merged`."""
        return f"{self.ratio:.0%} merged" if self.ratio else "plain"

    def change(self, plain: Drawn) -> float:
        """Mean absolute difference from other pictures, as a share of the range of a pixel."""
        return float((self.pictures - plain.pictures).abs().mean())


@dataclass(frozen=True)
class Drawing:
    """What a generator drew.

    Attributes:
        name: of the generator.
        note: what stays at full length in every one that merges, or nothing.
        prompts: in words.
        drawn: the plain model first, then one a ratio.
    """

    name: str
    note: str
    prompts: Sequence[str]
    drawn: Sequence[Drawn]


def draw(
    generator: Generator,
    prompts: Sequence[str],
    steps: int,
    seed: int,
    ratios: Sequence[float] = RATIOS,
) -> list[Drawn]:
    """Every prompt at every ratio, from the same noise.

    Both models run kernel by kernel, the merged one from the rewritten graph: to compile each ratio
    would take minutes, for 256 tokens that are soon through anyway. So no times are taken here.

    Args:
        generator: trained.
        prompts: in words of the captions that it was trained on.
        steps: denoising steps; time grows in proportion.
        seed: of the first prompt; the others follow it.
        ratios: shares of tokens removed; 0 is the plain model.
    """
    return [_draw(generator, prompts, steps, seed, ratio) for ratio in ratios]


def sheet(prompts: Sequence[str], drawn: Sequence[Drawn]) -> Image.Image:
    """A column for each prompt, a row for each ratio, and their names above and beside them."""
    side = _SCALE * drawn[0].pictures.shape[-1] + _GAP
    size = (_MARGIN + len(prompts) * side, _HEAD + len(drawn) * side)
    page = Image.new("RGB", size, PAPER)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(_TEXT)
    for column, prompt in enumerate(prompts):
        text = textwrap.shorten(prompt, side // 8, placeholder="…")
        pen.text((_MARGIN + column * side, _HEAD // 2), text, INK, font, anchor="lm")
    for row, one in enumerate(drawn):
        top = _HEAD + row * side
        pen.text((_GAP, top + side // 2), one.title.replace(" ", "\n"), INK, font, anchor="lm")
        for column, picture in enumerate(one.pictures):
            cell = to_image(picture.permute(1, 2, 0), _SCALE)
            page.paste(cell, (_MARGIN + column * side, top))
    return page


def write_sheet(prompts: Sequence[str], drawn: Sequence[Drawn], file: Path) -> Path:
    """Save the sheet; the folder is created where missing.

    Raises:
        OSError: the file cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet(prompts, drawn).save(file)
    return file


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
        pictures = generate(generator, prompts, seeds, steps, model=model)
    report = last_report()
    left = report.flops_after / report.flops_before if ratio else 1.0
    return Drawn(ratio, pictures, left)
