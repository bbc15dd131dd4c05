"""The pages of the documentation, as Markdown sees them."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, *DOCS]
OTHERS = [
    *sorted(ROOT.glob("CONTRIBUTING.md")),
    *sorted(page for part in ("toma_fx", "examples") for page in (ROOT / part).rglob("README.md")),
]


class Fence(NamedTuple):
    """A fenced block: its language, its text, and the line where it begins."""

    language: str
    text: str
    line: int


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def fences(page: Path) -> list[Fence]:
    """All fenced and indented blocks of a page."""
    found = [token for token in _tokens(page) if token.type in ("fence", "code_block")]
    return [Fence(token.info.strip(), token.content, (token.map or [0])[0] + 1) for token in found]


def links(page: Path) -> list[str]:
    """Targets of links and pictures."""
    inline = [part for token in _tokens(page) for part in token.children or ()]
    targets = [part.attrGet("href") or part.attrGet("src") for part in inline]
    return [str(target) for target in targets if target]


def anchors(page: Path) -> set[str]:
    """What a link to a heading may name: the heading as GitHub spells it."""
    tokens = _tokens(page)
    return {slug(text.content) for mark, text in pairwise(tokens) if mark.type == "heading_open"}


def tables(page: Path) -> list[list[list[str]]]:
    """Rows of each table, the head first, as the text of their cells."""
    found: list[list[list[str]]] = []
    for token in _tokens(page):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type == "inline" and found and token.level >= 4:
            found[-1][-1].append(token.content)
    return found


def slug(heading: str) -> str:
    kept = re.sub(r"[^\w\- ]", "", heading.lower())
    return kept.replace(" ", "-")


def _tokens(page: Path) -> list[Token]:
    return MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8"))
