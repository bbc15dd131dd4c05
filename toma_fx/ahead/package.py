"""The file: what a package says of itself, how it is written, and whether this machine can run it.

A package is the archive that torch writes, `data/aotinductor/<entry>/…`, with one more file in it,
`extra/toma_fx.json`. It is read as a zip file before any native code of the package is loaded, and
so is every other member: a damaged library would load, and compute something else.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from toma_fx.ahead.signature import Call, Caller
from toma_fx.config import TomaConfig
from toma_fx.errors import ConfigError, MismatchError, PackageError

_EXTRA = "toma_fx.json"
_FORMAT = 2


@dataclass
class Entry:
    """One call that a package serves.

    Attributes:
        name: of the entry in the archive; `model` is the one that torch loads by default.
        call: the arguments that it was exported with.
        dynamic: shapes may differ from `call`, which torch then checks.
        groups: plans of its reuse cache; 0 where nothing is merged.
        device: type of the device that it runs on.
        report: `Report.to_dict()` of its passes.
        seconds: what tracing and compiling took.
    """

    name: str
    call: Call
    dynamic: bool
    groups: int
    device: str
    report: dict[str, Any]
    seconds: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        fields = {name: value for name, value in vars(self).items() if name != "call"}
        return {**fields, "inputs": self.call.to_list()}

    @classmethod
    def from_dict(cls, described: Mapping[str, Any]) -> Entry:
        fields = {name: value for name, value in described.items() if name != "inputs"}
        return cls(call=Call.from_list(described["inputs"]), **fields)


def check_path(path: str | Path) -> Path:
    """Refuse a target before the work, not after it.

    Raises:
        ConfigError: the name does not end in `.pt2`, or its folder does not exist.
    """
    target = Path(path)
    if target.suffix != ".pt2":
        raise ConfigError(f"a package is a file that ends in .pt2, not {target.name!r}")
    if not target.parent.is_dir() or target.is_dir():
        raise ConfigError(f"{target.parent} must be a folder, and {target.name} no folder in it")
    return target


def describe(
    model: nn.Module, caller: Caller, config: TomaConfig, entries: list[Entry]
) -> dict[str, Any]:
    """What `toma_fx.load` reads: plain lists, dictionaries, strings and numbers."""
    kind = type(model)
    return {
        "format": _FORMAT,
        "model": f"{kind.__module__}.{kind.__qualname__}",
        "config": asdict(config),
        "ratio": config.ratio,
        "parameters": caller.to_list(),
        "entries": [entry.to_dict() for entry in entries],
        "device": entries[0].device,
        "machine": machine(entries[0].device),
        "versions": {"torch": torch_release(), "toma_fx": _own_version()},
    }


def write_package(path: Path, files: dict[str, list[Any]], description: dict[str, Any]) -> None:
    """Write the archive beside its place, then move it there: it is whole or not there at all."""
    from torch.export.pt2_archive._package import package_pt2

    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as folder:
        draft = Path(folder) / path.name  # the archive's root folder is named after the file
        package_pt2(str(draft), aoti_files=files)
        with zipfile.ZipFile(draft, "a") as archive:
            members = {name: _checksum(archive, name) for name in archive.namelist()}
            root = next(iter(members)).partition("/")[0]
            text = json.dumps({**description, "members": members}, indent=1)
            archive.writestr(f"{root}/extra/{_EXTRA}", text)
        os.replace(draft, path)


def read_description(path: Path) -> dict[str, Any]:
    """The description of a package; loads no native code.

    Raises:
        FileNotFoundError: there is no such file.
        PackageError: it is cut short, no archive, or not written by `toma_fx.export`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file")
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(f"/extra/{_EXTRA}")]
            if not names:
                raise PackageError(
                    f"{path} was not written by toma_fx.export: "
                    "load it with torch._inductor.aoti_load_package"
                )
            description = json.loads(archive.read(names[0]))
    except (zipfile.BadZipFile, EOFError, ValueError) as error:
        if isinstance(error, PackageError):
            raise
        raise PackageError(f"{path} is no package, or cut short: {error}") from error
    known = description.get("format") if isinstance(description, dict) else None
    if known != _FORMAT:
        raise PackageError(
            f"{path} has format {known!r}, this toma_fx reads {_FORMAT}: export it again"
        )
    return description


def check_members(path: Path, description: Mapping[str, Any]) -> None:
    """Refuse a file that is not, to the last bit, what was exported. Reads all of it once.

    Raises:
        PackageError: a member is damaged, missing or foreign; the message names it.
    """
    expected = description["members"]
    with zipfile.ZipFile(path) as archive:
        there = [name for name in archive.namelist() if not name.endswith(f"/extra/{_EXTRA}")]
        for name in sorted({*expected, *there}):
            if name not in there:
                problem = "is missing"
            elif name not in expected:
                problem = "was added to it"
            elif _checksum(archive, name) != expected[name]:
                problem = "is damaged"
            else:
                continue
            raise PackageError(
                f"{path} is not what was exported: {name} {problem}; copy it or export it again"
            )


def _checksum(archive: zipfile.ZipFile, name: str) -> str:
    """SHA-256 of a member, or why it cannot be read."""
    found = hashlib.sha256()
    try:
        with archive.open(name) as member:
            while block := member.read(2**20):
                found.update(block)
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        return f"unreadable: {error}"
    return found.hexdigest()


def check_machine(path: Path, description: Mapping[str, Any]) -> None:
    """Refuse native code that this process cannot run, before it is loaded.

    Raises:
        MismatchError: another torch release, no such device, or another processor.
    """
    built, here = description["versions"]["torch"], torch_release()
    if built != here:
        raise MismatchError(f"{path} was built with torch {built}, this is {here}: export it again")
    device = description["device"]
    if device == "cuda" and not torch.cuda.is_available():
        raise MismatchError(f"{path} was built for cuda, and this process sees no such device")
    theirs, ours = description["machine"], machine(device)
    for name in ("platform", "machine", "capability"):
        if theirs[name] != ours[name]:
            raise MismatchError(
                f"{path} was built for {name} {theirs[name]!r}, this is {ours[name]!r}"
            )
    missing = set(theirs["instructions"].split()) - set(ours["instructions"].split())
    if missing:
        raise MismatchError(
            f"{path} was built for a processor with {' '.join(sorted(missing))}, which this one "
            "lacks: export it here"
        )


def machine(device: str) -> dict[str, str]:
    """What native code depends on."""
    from torch._inductor.codecache import get_device_information

    found = get_device_information(device)
    names = {
        "platform": "AOTI_PLATFORM",
        "machine": "AOTI_MACHINE",
        "instructions": "AOTI_CPU_ISA",
        "capability": "AOTI_COMPUTE_CAPABILITY",
    }
    return {ours: found.get(theirs, "") for ours, theirs in names.items()}


def torch_release() -> str:
    """`2.13.0` of `2.13.0+cpu`: how it was built shows in the device."""
    return str(torch.__version__).partition("+")[0]


def _own_version() -> str:
    try:
        return version("toma_fx")
    except PackageNotFoundError:
        return "unknown"
