"""PNG files of a merged photograph: windows, destinations, what is restored, and all in one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from toma_fx.demo.photograph import Patches, Restored

PAPER, INK = (250, 250, 248), (20, 20, 20)
_TILE_LINE, _PATCH_LINE = (255, 214, 10), (128, 128, 128)
_MERGED = (0.22, 0.26, 0.38)  # slate: neither black nor white patches of a photograph look like it
_GAP = 12
_ERROR_GAIN = 4
_COLOURS = "full colour: destinations, kept; slate blue: merged into them"
_LINES = "yellow: borders of windows; tokens merge only within their window"
_ORIGIN = "merged, then unmerged: made from the kept patches alone"
_LEGEND = (
    "How to read this sheet",
    "",
    "yellow lines: borders of the windows; tokens",
    "  merge only within their window",
    "full colour: destinations, the patches kept",
    "slate blue: patches merged into destinations",
    "restored: after merge and unmerge, from the",
    "  kept patches alone",
    f"error: |restored - original| x {_ERROR_GAIN}",
    "dB: peak signal-to-noise ratio; more is closer",
)


def write_pictures(patches: Patches, restored: Sequence[Restored], folder: Path) -> list[Path]:
    """Write `windows.png`, and `destinations_*.png` and `restored_*.png` a ratio, and a sheet.

    Args:
        patches: the photograph.
        restored: one a ratio.
        folder: created where missing; files of the same names are replaced.

    Returns:
        The files, the contact sheet last.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {"windows": captioned(draw_windows(patches, 2), _windows_text(patches), _LINES)}
    for one in restored:
        percent = f"{100 * one.ratio:.0f}"
        chosen = draw_destinations(patches, one.chosen, scale=2)
        pictures[f"destinations_{percent}"] = captioned(chosen, _destinations_text(one), _COLOURS)
        pictures[f"restored_{percent}"] = captioned(
            to_image(one.picture, 2), _restored_text(one), _ORIGIN
        )
    pictures["contact_sheet"] = contact_sheet(patches, restored)
    files = [folder / f"{name}.png" for name in pictures]
    for file, picture in zip(files, pictures.values(), strict=True):
        picture.save(file)
    return files


def to_image(picture: Tensor, scale: int = 1) -> Image.Image:
    """`[height, width, 3]` in [0, 1] to an image, each pixel `scale × scale`."""
    image = Image.fromarray((picture * 255).round().to(torch.uint8).numpy())
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def draw_windows(patches: Patches, scale: int = 1) -> Image.Image:
    """The photograph with fine lines between patches and bold ones between windows."""
    image = to_image(patches.picture, scale)
    if scale > 1:  # at one pixel a line would hide an eighth of a patch
        _lines(image, patches.side * scale, _PATCH_LINE, 1)
    _lines(image, patches.side * patches.window * scale, _TILE_LINE, 2 * scale - 1)
    return image


def draw_destinations(patches: Patches, chosen: Tensor, scale: int = 1) -> Image.Image:
    """The photograph with the chosen patches in full colour and the others in slate blue."""
    picture, side = patches.picture, patches.side
    dimmed = 0.2 * picture.mean(-1, keepdim=True) + 0.8 * torch.tensor(_MERGED)
    mask = chosen.repeat_interleave(side, 0).repeat_interleave(side, 1).unsqueeze(-1)
    image = to_image(torch.where(mask, picture, dimmed), scale)
    _lines(image, side * patches.window * scale, _TILE_LINE, 1)
    return image


def contact_sheet(patches: Patches, restored: Sequence[Restored]) -> Image.Image:
    """All pictures at once: a column each for the original and every ratio."""
    height, width = patches.picture.shape[:2]
    first = [
        captioned(to_image(patches.picture), f"original, {width} x {height} pixels"),
        captioned(draw_windows(patches), _windows_text(patches)),
        captioned(_legend(width, height), ""),
    ]
    columns = [first] + [_column(patches, one) for one in restored]
    across, down = first[0].width + _GAP, first[0].height + _GAP
    sheet = Image.new("RGB", (across * len(columns) + _GAP, down * len(first) + _GAP), PAPER)
    for x, column in enumerate(columns):
        for y, panel in enumerate(column):
            sheet.paste(panel, (_GAP + x * across, _GAP + y * down))
    return sheet


def captioned(image: Image.Image, *lines: str) -> Image.Image:
    """The image with lines of text above it."""
    size = max(10, image.width // 32)
    font, band = ImageFont.load_default(size), 3 * size // 2
    page = Image.new("RGB", (image.width, image.height + band * len(lines)), PAPER)
    page.paste(image, (0, band * len(lines)))
    pen = ImageDraw.Draw(page)
    for row, text in enumerate(lines):
        pen.text((2, row * band + band // 2), text, fill=INK, font=font, anchor="lm")
    return page


def _column(patches: Patches, one: Restored) -> list[Image.Image]:
    error = (one.picture - patches.picture).abs() * _ERROR_GAIN
    return [
        captioned(draw_destinations(patches, one.chosen), _destinations_text(one)),
        captioned(to_image(one.picture), _restored_text(one)),
        captioned(to_image(error.clamp(0, 1)), f"{one.ratio:.0%} removed: error x {_ERROR_GAIN}"),
    ]


def _lines(image: Image.Image, step: int, colour: tuple[int, int, int], thick: int) -> None:
    pen = ImageDraw.Draw(image)
    for x in range(step, image.width, step):
        pen.line((x, 0, x, image.height), fill=colour, width=thick)
    for y in range(step, image.height, step):
        pen.line((0, y, image.width, y), fill=colour, width=thick)


def _legend(width: int, height: int) -> Image.Image:
    page = Image.new("RGB", (width, height), PAPER)
    size = max(8, width // 25)
    font = ImageFont.load_default(size)
    ImageDraw.Draw(page).multiline_text(
        (0, 0), "\n".join(_LEGEND), fill=INK, font=font, spacing=size // 2
    )
    return page


def _windows_text(patches: Patches) -> str:
    count, size, _ = patches.pixels.shape
    return f"{count} windows of {size} tokens; a token is {patches.side} x {patches.side} pixels"


def _destinations_text(one: Restored) -> str:
    return f"{one.ratio:.0%} removed: {one.kept} of {one.chosen.numel()} tokens kept"


def _restored_text(one: Restored) -> str:
    return f"{one.ratio:.0%} removed: restored, {one.quality:.1f} dB"
