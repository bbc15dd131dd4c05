"""Imports in `passes/` point one way: a stage reads results of earlier ones, not their insides."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import toma_fx.passes

ROOT = Path(toma_fx.passes.__file__).parent
NAME = "toma_fx.passes"

# What each folder may read beside itself: folders of words whole, of a stage only its result.
READS = {
    "graph": (),
    "normalize": ("graph",),
    "layouts": ("graph",),
    "find": ("graph", "layouts"),
    "methods": ("graph", "layouts", "find.region", "find.keys"),
    "plan": ("graph", "layouts", "find.region", "methods"),
    "rewrite": ("graph", "layouts", "find.region", "methods", "plan.hoist"),
}
# What stands on top of the passes: they are called from there, and know nothing of it.
DOORS = ("ahead", "backend", "cli", "demo", "diffusers", "explain", "reuse")


def imports(source: str) -> Iterator[str]:
    """The full names of what a file imports, in functions and for types as well."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where a name comes from"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, place: str) -> bool:
    return f"{name}.".startswith(f"{place}.")


def strays(source: str, folder: str) -> list[str]:
    """Imports of other passes that a file in a folder should not have."""
    allowed = [f"{NAME}.{place}" for place in (folder, *READS[folder])]
    passes = [name for name in imports(source) if within(name, NAME)]
    return [name for name in passes if not any(within(name, place) for place in allowed)]


def test_every_folder_has_its_place_in_the_order() -> None:
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert folders == set(READS)
    earlier: set[str] = set()
    for folder, reads in READS.items():
        assert {place.partition(".")[0] for place in reads} <= earlier
        earlier.add(folder)


@pytest.mark.parametrize("folder", READS)
def test_a_folder_reads_only_what_comes_before_it(folder: str) -> None:
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    found = {path.name: strays(path.read_text(), folder) for path in files}
    assert not {name: names for name, names in found.items() if names}


def test_the_passes_know_nothing_of_what_calls_them() -> None:
    doors = [f"toma_fx.{door}" for door in DOORS]
    for path in ROOT.rglob("*.py"):
        for name in imports(path.read_text()):
            assert not any(within(name, door) for door in doors), f"{path.name} imports {name}"


@pytest.mark.parametrize("folder", READS)
def test_a_folder_says_why_it_exists_what_holds_around_it_and_who_calls_it(folder: str) -> None:
    text = ast.get_docstring(ast.parse((ROOT / folder / "__init__.py").read_text())) or ""
    assert all(word in text for word in ("Why:", "Before:", "After:", "alled by"))


@pytest.mark.parametrize(
    ("line", "folder", "stray"),
    [
        ("from toma_fx.passes.rewrite.expect import check_shape", "plan", True),
        ("import toma_fx.passes.plan.plan", "find", True),
        ("from toma_fx.passes.find.anchors import Entry", "plan", True),
        ("from toma_fx.passes.find.region_tables import Region", "plan", True),
        ("from toma_fx.passes import runner", "rewrite", True),
        ("from toma_fx.passes.find import region", "plan", False),
        ("from toma_fx.passes.find.region import Region", "plan", False),
        ("from toma_fx.passes.plan.scope import blocks_of", "plan", False),
        ("def late():\n    from toma_fx.passes.plan import plan", "layouts", True),
        ("from toma_fx.windows import Windows", "graph", False),
    ],
)
def test_a_stray_import_is_seen(line: str, folder: str, stray: bool) -> None:
    assert bool(strays(line, folder)) == stray
