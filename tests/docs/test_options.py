"""`docs/options.md` says what the docstrings say, of every field."""

from __future__ import annotations

from dataclasses import dataclass, fields

import pytest

from docs import options
from tests.docs.pages import anchors, tables
from toma_fx.diffusers import TokenMergingConfig


def test_the_page_is_up_to_date() -> None:
    written = options.PAGE.read_text(encoding="utf-8")
    assert written == options.page(), "run python -m docs.options"


def test_every_field_has_a_row_and_a_section() -> None:
    names = [field.name for field in fields(TokenMergingConfig)]
    (first, *_) = tables(options.PAGE)
    assert sorted(row[0] for row in first[1:]) == sorted(f"[`{name}`](#{name})" for name in names)
    assert set(names) <= anchors(options.PAGE)


@dataclass
class Forgetful:
    """One field of two.

    Args:
        said: this one.
    """

    said: int = 1
    unsaid: int = 2


def test_a_field_without_words_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"Forgetful: \['unsaid'\]"):
        options._fields(Forgetful)


@pytest.mark.parametrize(
    ("text", "gist"),
    [
        ("share of tokens, in [0, 1). A larger value\nis faster", "share of tokens, in [0, 1)"),
        ("what merges: `a`; or `b`", "what merges"),
        ("0.5 of\nall.", "0.5 of all"),
    ],
)
def test_the_gist_is_the_first_clause(text: str, gist: str) -> None:
    assert options._gist(text) == gist
