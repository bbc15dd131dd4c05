"""Modules and functions with code objects of their own: their compiled graphs are theirs alone.

Dynamo keeps compiled graphs, and counts recompiles, by code object. Contestants that run beside one
another would look through each other's graphs at every call, and after eight of them Dynamo would
quietly compile no more.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Codes = dict[types.CodeType, types.CodeType]
"""Copies by their originals: who shares this shares graphs."""


def twin(model: nn.Module) -> nn.Module:
    """A module beside another: the same class and weights, and code of its own."""
    found = copy.copy(model)
    found.forward = own(found.forward, {})
    return found


def compile_in_place(module: nn.Module, backend: Any, **options: Any) -> None:
    """`nn.Module.compile`; `"eager"` compiles nothing."""
    if backend != "eager":
        module.compile(backend=backend, **options)


def compiled(function: Callable[..., Any], backend: Any, codes: Codes) -> Callable[..., Any]:
    """A function or bound method with code of its own; `"eager"` compiles nothing."""
    return function if backend == "eager" else torch.compile(own(function, codes), backend=backend)


def own(function: Callable[..., Any], codes: Codes) -> Callable[..., Any]:
    """The same function or bound method with a code object of its own."""
    if isinstance(function, types.MethodType):
        return types.MethodType(own(function.__func__, codes), function.__self__)
    assert isinstance(function, types.FunctionType)
    theirs = function.__code__
    found = types.FunctionType(
        codes.setdefault(theirs, theirs.replace()),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    found.__kwdefaults__ = function.__kwdefaults__
    return found
