"""The machine, versions and command behind a result: every file of results begins with them."""

from __future__ import annotations

import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("torch", "triton", "diffusers", "toma_fx")


def describe() -> dict[str, Any]:
    """Machine, versions and command, ready for JSON."""
    machine = {
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
    }
    return {"machine": machine, "versions": _versions(), "command": _command()}


def in_words(found: dict[str, Any]) -> str:
    """What `describe` found, on two lines of Markdown."""
    machine = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    where = f"{machine['gpu'] or machine['cpu']}, {machine['threads']} threads"
    return f"{where}; {versions}.\n`{found['command']}`"


def _command() -> str:
    """As one would type it: modules by name, `-m benchmarks.steps`."""
    spec = sys.modules["__main__"].__spec__
    script = ["-m", spec.name] if spec is not None else [Path(sys.argv[0]).name]
    return shlex.join(["python", *script, *sys.argv[1:]])


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
