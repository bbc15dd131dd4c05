"""The README is short, every link leads somewhere, and every page is reached from the README."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.docs.pages import DOCS, OTHERS, PAGES, README, ROOT, anchors, links, name, slug


def test_the_readme_is_two_screens() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    broken = [link for link in links(page) if not _resolves(page, link)]
    assert not broken


def test_every_page_is_linked_from_the_readme() -> None:
    linked = {(README.parent / link.partition("#")[0]).resolve() for link in links(README)}
    missing = [name(page) for page in DOCS if page not in linked]
    assert not missing


def test_every_folder_of_the_passes_is_described() -> None:
    stages = {folder.parent.name for folder in (ROOT / "passes").glob("*/__init__.py")}
    page = ROOT / "docs" / "how-it-works.md"
    assert not [stage for stage in stages if f"../passes/{stage}" not in links(page)]


@pytest.mark.parametrize("page", DOCS, ids=name)
def test_every_page_leads_back(page: Path) -> None:
    assert "../README.md" in links(page)


@pytest.mark.parametrize(
    ("heading", "expected"),
    [
        ("toma-fx export and toma-fx run-package", "toma-fx-export-and-toma-fx-run-package"),
        ("What is refused, and why", "what-is-refused-and-why"),
        ("select_every", "select_every"),
    ],
)
def test_headings_are_spelt_as_github_does(heading: str, expected: str) -> None:
    assert slug(heading) == expected


def test_a_broken_link_is_noticed(tmp_path: Path) -> None:
    page = ROOT / "docs" / "limits.md"
    assert _resolves(page, "../README.md#use")
    assert _resolves(page, "https://arxiv.org/abs/2509.10918")
    for broken in ("../README.md#nowhere", "nowhere.md", "#nowhere"):
        assert not _resolves(page, broken)


def _resolves(page: Path, link: str) -> bool:
    """Whether a link of a page leads to a file, and to a heading where it names one."""
    if link.startswith(("https://", "http://")):
        return True
    path, _, anchor = unquote(link).partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.exists() or not target.is_relative_to(ROOT):
        return False
    return not anchor or (target.suffix == ".md" and anchor in anchors(target))
