"""What the demonstration says when it cannot run: one line, with what to do next."""

from __future__ import annotations

import importlib.util

from torch._dynamo.exc import TorchDynamoException
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler


class DemoError(Exception):
    """The demonstration cannot run here; the message is one line and says what to do."""


def require(*modules: str) -> None:
    """Raise `DemoError` unless all of the modules are installed. Imports none of them."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise DemoError(f"{', '.join(missing)} not installed: run pip install 'toma_fx[demo]'")


def require_compiler() -> None:
    """Raise `DemoError` unless there is the C++ compiler that Inductor needs on a CPU."""
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise DemoError("no C++ compiler found: install g++ or clang, or set CXX") from None


def in_one_line(error: Exception) -> str:
    """The message of an error; of a failed compilation, which is a page, its first two lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, TorchDynamoException):
        return f"compilation failed: {' '.join(lines[:2])}"
    return " ".join(lines)
