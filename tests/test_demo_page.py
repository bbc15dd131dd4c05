"""The page of the demonstration: whole, self-contained, and true to what was found."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("skimage")
Image = pytest.importorskip("PIL.Image")

from tests.test_demo import compared  # noqa: E402
from toma_fx.demo.page import Story, write_page  # noqa: E402
from toma_fx.demo.photograph import cut_patches, restore  # noqa: E402
from toma_fx.demo.prompts import Drawing, Drawn  # noqa: E402

JOB: Any = SimpleNamespace(name="A <small> model", detail="4 weights")
DRAWN = [Drawn(ratio, torch.rand(2, 3, 8, 8), 1 - ratio) for ratio in (0.0, 0.25, 0.5)]
PROMPTS = [Drawing("emoji", "one block at full length", ["apple", "<b>cat</b>"], DRAWN)]
VOID = {"meta", "img", "input", "br"}


class Page(HTMLParser):
    """Its text, its pictures, and whether every element that opens closes."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.text, self.images, self.links = "", [], []
        self.open: list[str] = []
        self.source = file.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag == "img":
            assert given["alt"]
            self.images.append(given["src"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data


@pytest.fixture(scope="module")
def photograph() -> Any:
    patches = cut_patches(torch.rand(64, 128, 3))
    return patches, [restore(patches, ratio) for ratio in (0.25, 0.5)]


def test_all_of_it(tmp_path: Path, photograph: Any) -> None:
    found = compared([2.0, 2.0], [1.0, 1.6])
    page = Page(write_page(Story(0.5, [(JOB, found)], PROMPTS, photograph), tmp_path / "new"))
    text = " ".join(page.text.split())
    assert page.open == []
    assert text.startswith("toma_fx: half of the tokens, merged")
    assert "1.62×" in text
    assert "median of 2 turns, 1.25 … 2.00×" in text
    assert "feed forward 256 → 128" in text
    assert "A <small> model" in text  # shown, and not an element
    assert "<b>cat</b>" in text
    assert "50% of FLOPs" in text
    assert f"{photograph[1][1].quality:.1f} dB" in text
    assert "Below 1×" not in text
    # Two in the head, two prompts at three ratios, three pictures a ratio, and the sheet.
    assert len(page.images) == 2 + 2 * 3 + 3 * 2 + 1


def test_nothing_lies_outside(tmp_path: Path, photograph: Any) -> None:
    page = Page(write_page(Story(0.5, [], PROMPTS, photograph), tmp_path))
    assert page.links == page.images
    for image in page.images:
        kind, _, data = image.partition(",")
        assert kind == "data:image/jpeg;base64"
        assert min(Image.open(io.BytesIO(base64.b64decode(data))).size) >= 32
    assert not re.search(r"https?://|url\(|@import", page.source)
    assert "prefers-color-scheme: dark" in page.source


def test_bars_are_as_long_as_medians(tmp_path: Path) -> None:
    found = compared([2.0, 3.0, 4.0], [1.0, 1.0, 1.5])
    source = Page(write_page(Story(0.5, [(JOB, found)]), tmp_path)).source
    assert 'class="plain" style="width: 75.0%"' in source
    assert 'class="merged" style="width: 25.0%"' in source
    assert "left: 50.0%; right: 0.0%" in source  # the spread of the plain one


def test_a_figure_below_one_says_why(tmp_path: Path) -> None:
    found = compared([1.0], [2.0], gain=1.05)
    text = Page(write_page(Story(0.3, [(JOB, found)]), tmp_path)).text
    assert "0.50×" in text
    assert "Below 1×: 256 tokens are too few" in text
    assert "30% of the tokens" in text


@pytest.mark.parametrize("part", ["pipelines", "prompts", "photograph"])
def test_parts_that_did_not_run_are_left_out(part: str, tmp_path: Path, photograph: Any) -> None:
    parts: dict[str, Any] = {
        "pipelines": [(JOB, compared([2.0], [1.0]))],
        "prompts": PROMPTS,
        "photograph": photograph,
    }
    page = Page(write_page(Story(0.5, **{part: parts[part]}), tmp_path))
    headings = {
        "pipelines": "What a step costs",
        "prompts": "The same prompts",
        "photograph": "Keep some patches",
    }
    assert [name for name, heading in headings.items() if heading in page.text] == [part]
