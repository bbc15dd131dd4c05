"""`toma_fx.export`: from a model to a package of native code."""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch._inductor
from torch import nn
from torch.export import ExportedProgram

from toma_fx.ahead.package import Entry, check_path, describe, write_package
from toma_fx.ahead.signature import Caller, describe_call, signature_of, sorted_call
from toma_fx.ahead.transform import exported, first_line, transform
from toma_fx.backend import last_report
from toma_fx.compiler import inductor_options
from toma_fx.config import TomaConfig, closest
from toma_fx.errors import ConfigError, ExportError
from toma_fx.passes.methods import METHODS

_OLDEST_TORCH = (2, 13)
"""Torch 2.11 fails to package `cond` around `while_loop` ("Start index 8 out of bounds")."""


def export(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    path: str | Path,
    config: TomaConfig | None = None,
    dynamic_shapes: Any = None,
    also: Sequence[tuple[Sequence[Any], Mapping[str, Any]]] = (),
    compile_options: Mapping[str, Any] | None = None,
) -> Path:
    """Write a package (`.pt2`) of native code that runs `model` with token merging.

    Loaded with `toma_fx.load`, with `torch._inductor.aoti_load_package` where toma_fx is not
    installed, or in C++. The file appears whole or not at all. It holds native code: whoever loads
    it runs it. `toma_fx.last_report()` says what was merged.

    Args:
        model: in eval mode, on the device it will run on. Its weights become part of the package.
        args: of a call, as `torch.export.export` takes them. Shapes are fixed by this call;
            numbers, strings and None among the arguments become constants.
        kwargs: likewise.
        path: ends in `.pt2`, in a folder that exists; a file there is replaced.
        config: defaults to `TomaConfig()`.
        dynamic_shapes: as `torch.export.export` takes them; only where nothing merges.
        also: calls of other shapes, `(args, kwargs)` each. Each becomes an entry of its own and
            costs its own compile and its own copy of the weights.
        compile_options: options of Inductor, by name.

    Returns:
        `path`.

    Costs an export (seconds), and a compile by the C++ compiler that grows with the model: half a
    minute for twelve regions on one core.

    Raises:
        ExportError: the model has a graph break or data-dependent control flow, a size is dynamic
            though something merges, or a compile failed.
        ConfigError: `path`, the configuration or an option is not usable.
    """
    target = check_path(path)
    options = _checked(compile_options or {})
    config = config or TomaConfig()
    signature = signature_of(model.forward)
    entries: list[Entry] = []
    files: dict[str, list[Any]] = {}
    for number, (given, named) in enumerate([(args, kwargs or {}), *also]):
        name = f"model_{number + 1}" if number else "model"  # the name that torch loads by default
        call = sorted_call(signature, given, named)
        entry, program = _trace(model, name, signature, call, config, dynamic_shapes)
        files[name] = _compile(program, entry, options)
        entries.append(entry)
    caller = Caller(signature)
    write_package(target, files, describe(model, caller, config, entries))
    return target


def _trace(
    model: nn.Module,
    name: str,
    signature: inspect.Signature,
    call: tuple[tuple[Any, ...], dict[str, Any]],
    config: TomaConfig,
    dynamic_shapes: Any,
) -> tuple[Entry, ExportedProgram]:
    """The program of one call, with token merging, and what the package says of it."""
    start = time.perf_counter()
    leaves = describe_call(signature, *call)
    plain = exported(model, *call, dynamic_shapes)
    program = transform(plain, config)
    report, method = last_report(), METHODS[config.method]
    keeps_plans = method.stateful and not method.remembers
    entry = Entry(
        name=name,
        call=leaves,
        dynamic=program is plain and dynamic_shapes is not None,
        groups=len({region.group for region in report.merged}) if keeps_plans else 0,
        device=_device(model, leaves.tensors[0].device if leaves.tensors else "cpu"),
        report=report.to_dict(),
        seconds={"trace": time.perf_counter() - start},
    )
    return entry, program


def _compile(program: ExportedProgram, entry: Entry, options: dict[str, Any]) -> list[Any]:
    """The files that AOTInductor writes for one entry, in its cache folder."""
    release = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if entry.groups and entry.device == "cpu" and release < _OLDEST_TORCH:
        wanted = ".".join(map(str, _OLDEST_TORCH))
        raise ExportError(
            f"torch {torch.__version__} cannot package the selection loop on a CPU: "
            f"install torch {wanted} or newer, or use torch.compile"
        )
    module = program.module(check_guards=False)
    args, kwargs = program.example_inputs
    # Strings that C++ reads without a JSON parser: the order of the inputs.
    names = {"toma_fx_inputs": ",".join(leaf.path for leaf in entry.call.tensors)}
    more = {
        "aot_inductor.package": True,
        "aot_inductor.metadata": names,
        # Inductor writes weights of a few elements into the code, where nobody could exchange them.
        "always_keep_tensor_constants": True,
    }
    start = time.perf_counter()
    try:
        with torch.no_grad():
            files = torch._inductor.aot_compile(module, args, kwargs, options={**options, **more})
    except Exception as error:
        raise ExportError(
            f"AOTInductor cannot compile the model: {type(error).__name__}: {first_line(error)}"
        ) from error
    entry.seconds["compile"] = time.perf_counter() - start
    assert isinstance(files, list)
    return files


def _checked(options: Mapping[str, Any]) -> dict[str, Any]:
    known = [name.replace("_", "-") for name in inductor_options()]
    for name in options:
        if name.replace("_", "-") not in known:
            raise ConfigError(f"unknown option {name!r}{closest(name, inductor_options())}")
    return dict(options)


def _device(model: nn.Module, otherwise: str) -> str:
    first = next(model.parameters(), None)
    return otherwise if first is None else first.device.type
