"""Methods of packages that are imported later; packages here are files."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest

from tests.docs.pages import ROOT
from toma_fx import EngineError
from toma_fx.engines import xdit
from toma_fx.engines.wrapping import Method, _waiting, _watcher, wrap

METHOD = Method("An engine", "toma_engine.inner.runner", "Runner", "load", "1.2.3")
RUNNER = """
class Runner:
    def load(self, path, *, fast=False):
        "Loads."
        return [path, fast]
"""


@pytest.fixture(autouse=True)
def cleaned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("toma_engine", "xfuser"):
            del sys.modules[name]
    _waiting.clear()
    if _watcher in sys.meta_path:
        sys.meta_path.remove(_watcher)


def package(folder: Path, **files: str) -> None:
    """Files by their names, with two underscores for a folder."""
    for name, text in files.items():
        path = folder.joinpath(*name.split("__")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        for parent in path.parents:
            if parent == folder:
                break
            (parent / "__init__.py").touch()
        path.write_text(text)
    importlib.invalidate_caches()


def told(plain: Any, *args: Any, **kwargs: Any) -> Any:
    return ["around", *plain(*args, **kwargs)]


def test_a_module_that_is_imported_later(tmp_path: Path) -> None:
    package(tmp_path, toma_engine__inner__runner=RUNNER)
    wrap(METHOD, told)
    assert "toma_engine" not in sys.modules  # nothing of theirs is imported
    assert importlib.util.find_spec(METHOD.module) is not None  # a look changes nothing
    module = importlib.import_module(METHOD.module)
    assert module.Runner().load("a", fast=True) == ["around", "a", True]
    assert module.Runner.load.__doc__ == "Loads."
    assert not _waiting


def test_a_module_that_is_imported_already(tmp_path: Path) -> None:
    package(tmp_path, toma_engine__inner__runner=RUNNER)
    module = importlib.import_module(METHOD.module)
    wrap(METHOD, told)
    wrap(METHOD, told)  # once more changes nothing
    assert module.Runner().load("a") == ["around", "a", False]
    assert _watcher not in sys.meta_path


def test_what_others_put_around_ours_stays(tmp_path: Path) -> None:
    package(tmp_path, toma_engine__inner__runner=RUNNER)
    owner = importlib.import_module(METHOD.module).Runner
    wrap(METHOD, told)
    ours = owner.load
    owner.load = functools.wraps(ours)(lambda *args: ["theirs", *ours(*args)])
    wrap(METHOD, lambda plain, *args: ["anew", *plain(*args)])
    assert owner().load("a") == ["anew", "theirs", "around", "a", False]


def test_a_method_that_is_gone_shows_at_the_import(tmp_path: Path) -> None:
    package(tmp_path, toma_engine__inner__runner=RUNNER.replace("load", "read"))
    wrap(METHOD, told)
    with pytest.raises(EngineError, match=r"has no Runner\.load: .* of release 1.2.3"):
        importlib.import_module(METHOD.module)


@pytest.mark.parametrize("installed", [False, True])
def test_a_module_that_is_gone_shows_at_once(installed: bool, tmp_path: Path) -> None:
    if installed:
        package(tmp_path, toma_engine__inner__other=RUNNER)
    with pytest.raises(EngineError, match=r"has no module toma_engine\.inner\.runner"):
        wrap(METHOD, told)


def test_other_imports_are_let_be(tmp_path: Path) -> None:
    package(tmp_path, toma_engine__inner__runner=RUNNER, toma_engine__inner__other="x = 1")
    wrap(METHOD, told)
    other = importlib.import_module("toma_engine.inner.other")
    assert other.x == 1
    assert list(_waiting) == [METHOD.module]


def test_xdit_is_run_behind_the_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = "class xFuserModel:\n    def initialize(self, input_args): ...\n"
    runner = f"""
import sys
from {xdit.INITIALIZE.module} import xFuserModel
if __name__ == "__main__":
    sys.argv.append(hasattr(xFuserModel.initialize, "__wrapped__"))
"""
    name = xdit.INITIALIZE.module.replace(".", "__")
    package(tmp_path, **{name: base, "xfuser__runner": runner})
    monkeypatch.delenv("TOMA_FX", raising=False)
    monkeypatch.setattr(sys, "argv", ["xdit", "--model", "a"])
    monkeypatch.delitem(sys.modules, "toma_fx.engines.xdit")  # as python -m finds it
    runpy.run_module("toma_fx.engines.xdit", run_name="__main__")
    assert sys.argv[1:] == ["--model", "a", True]


def test_entry_points_lead_to_the_adapters() -> None:
    tomllib = pytest.importorskip("tomllib")  # from Python 3.11 on
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for group in ("vllm_omni.general_plugins", "sglang.multimodal_gen.plugins"):
        assert callable(resolve_name(project["entry-points"][group]["toma_fx"]))
