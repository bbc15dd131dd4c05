"""No module of the package imports one that imports it, in a function or for types either."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import toma_fx
import toma_fx.passes

ROOTS = {
    "toma_fx": Path(toma_fx.__file__).parent,
    "toma_fx.passes": Path(toma_fx.passes.__file__).parent,
}


def sources() -> dict[str, str]:
    """The text of each module, by its full name."""
    found = {}
    for package, root in ROOTS.items():
        for file in root.rglob("*.py"):
            parts = file.relative_to(root).with_suffix("").parts
            name = ".".join((package, *parts)).removesuffix(".__init__")
            found[name] = file.read_text(encoding="utf-8")
    return found


def imported(text: str, modules: set[str]) -> set[str]:
    """The modules of the package that a module imports; a name of one counts as the module."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in modules else str(node.module) for name in whole}
    return names & modules


def in_order(texts: dict[str, str]) -> list[str]:
    """The modules, each after what it imports."""
    modules = set(texts)
    edges = {name: imported(text, modules) - {name} for name, text in texts.items()}
    return list(TopologicalSorter(edges).static_order())


def test_there_is_no_circle() -> None:
    order = in_order(sources())
    assert order.index("toma_fx.errors") < order.index("toma_fx.passes.runner")
    assert order.index("toma_fx.passes.runner") < order.index("toma_fx.backend")


@pytest.mark.parametrize(
    "late",
    ["import p.a", "from p import a", "from p.a import x", "def f():\n from p.a import x"],
)
def test_a_circle_is_seen(late: str) -> None:
    assert in_order({"p.a": "from p.b import y", "p.b": "from q import a", "p": ""})
    with pytest.raises(CycleError):
        in_order({"p.a": "from p.b import y", "p.b": late, "p": ""})
