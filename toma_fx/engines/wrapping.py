"""Put something around a method of another package, whenever that package is imported."""

from __future__ import annotations

import functools
import importlib.util
import sys
import weakref
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from toma_fx.errors import EngineError


class Method(NamedTuple):
    """A method of an engine, and where it was read.

    Attributes:
        engine: its name.
        module: where the class is.
        owner: the class.
        name: of the method.
        read: the release.
    """

    engine: str
    module: str
    owner: str
    name: str
    read: str

    def missing(self, what: str) -> EngineError:
        return EngineError(
            f"{self.engine} has no {what}: its adapter was written against "
            f"{self.module}.{self.owner}.{self.name} of release {self.read}. Take one that "
            "has it, or switch merging on by hand: docs/engines.md"
        )


def wrap(method: Method, around: Callable[..., Any]) -> None:
    """Have `around(plain, *args, **kwargs)` called in place of a method.

    At once where its module is imported already, or else as soon as it is. A method that was
    wrapped before is wrapped anew: the latest `around` holds.

    Raises:
        EngineError: the engine is not installed, or has no such module or, which may show only
            where it imports the module, no such method.
    """
    action = functools.partial(_replace, method, around)
    if method.module in sys.modules:
        action(sys.modules[method.module])
        return
    if not _is_there(method.module):
        raise method.missing(f"module {method.module}")
    _waiting[method.module] = action
    if _watcher not in sys.meta_path:
        sys.meta_path.insert(0, _watcher)


def _replace(method: Method, around: Callable[..., Any], module: ModuleType) -> None:
    owner = getattr(module, method.owner, None)
    found = getattr(owner, method.name, None)
    if found is None:
        raise method.missing(method.owner if owner is None else f"{method.owner}.{method.name}")
    plain = _plain_of.get(found, found)

    @functools.wraps(plain)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return around(plain, *args, **kwargs)

    _plain_of[wrapped] = plain
    setattr(owner, method.name, wrapped)


def _is_there(module: str) -> bool:
    """Whether a module can be imported; found by its file, since a parent may be costly."""
    top, *inner = module.split(".")
    spec = importlib.util.find_spec(top)
    folders = (spec and spec.submodule_search_locations) or ()
    paths = [Path(folder, *inner) for folder in folders]
    return any(path.is_dir() or path.with_suffix(".py").is_file() for path in paths)


class _Watcher(MetaPathFinder):
    """Finds nothing itself: has what others find tell when it was executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _waiting:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next(filter(None, specs), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _waiting.pop(fullname)(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


# Not an attribute: who wraps ours by functools.wraps would copy it.
_plain_of: weakref.WeakKeyDictionary[Callable[..., Any], Any] = weakref.WeakKeyDictionary()
_waiting: dict[str, Callable[[ModuleType], None]] = {}
_watcher = _Watcher()
