"""`toma-fx doctor`: what is installed, and what that enables."""

from __future__ import annotations

import argparse
import platform
from importlib.metadata import PackageNotFoundError, version

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler

from toma_fx.devices import DeviceProfile, find_profile, measure_device

_PACKAGES = {
    "torch": "the compiler that the passes extend; 2.11 or newer",
    "triton": "planning kernels on CUDA; their tests, without a GPU",
    "diffusers": "pipelines, presets of explain and bench",
    "transformers": "text encoders of the pipelines",
    "peft": "LoRA adapters",
    "flash-attn": "attention on CUDA; recognised as attention when a model calls it",
    "xformers": "attention; recognised likewise",
    "sageattention": "attention in int8; recognised likewise",
    "torchao": "quantised linears",
    "matplotlib": "the picture of explain",
}


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--measure", action="store_true", help="measure this device anew")


def run(given: argparse.Namespace) -> None:
    console = Console(highlight=False)
    table = Table(
        "", "version", "what for", box=box.SIMPLE_HEAD, title=f"toma_fx {_version('toma_fx')}"
    )
    table.add_row("python", platform.python_version(), "3.10 or newer")
    for package, use in _PACKAGES.items():
        table.add_row(package, _version(package) or "not installed", use)
    table.add_row("C++ compiler", _compiler(), "kernels that Inductor generates for a CPU")
    table.add_row("GPU", _gpu(), "kernels that Inductor and Triton generate")
    table.add_row('backend "toma"', _backend(), 'torch.compile(model, backend="toma")')
    console.print(table)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    profile = measure_device(device, again=True) if given.measure else find_profile(None, device)
    console.print(f"device profile: {profile.name}, {profile.source}")
    console.print(_rates(profile))
    if not given.measure and "measured" not in profile.source:
        console.print("toma-fx doctor --measure measures this device; predictions then use it")


def _rates(profile: DeviceProfile) -> Table:
    table = Table("precision", "linear", "attention", "convolution", "batched", box=box.SIMPLE_HEAD)
    for name, rates in (("half", profile.half), ("single", profile.single)):
        numbers = (rates.linear, rates.attention, rates.convolution, rates.batched)
        table.add_row(name, *(f"{number / 1e9:.4g} GFLOP/s" for number in numbers))
    return table


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _compiler() -> str:
    try:
        return get_cpp_compiler()
    except InvalidCxxCompiler:
        return "not found: install g++ or clang, or set CXX"


def _gpu() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"


def _backend() -> str:
    known = "toma" in torch._dynamo.list_backends(exclude_tags=())
    return "registered" if known else "not registered: pip install toma_fx"
