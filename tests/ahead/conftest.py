"""Packages are built once for all tests, by one worker: a compile takes long."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import toma_fx
from tests.ahead.small import CONFIG, Small, small_call
from tests.models import flux, flux_inputs, sdxl, sdxl_inputs


class Built:
    """A package, the model that it was exported from, and one of its calls."""

    def __init__(self, model: nn.Module, call: dict[str, Any], path: Path) -> None:
        self.model = model
        self.call = call
        self.path = path


def build(
    factory: pytest.TempPathFactory, name: str, model: nn.Module, *calls: dict[str, Any]
) -> Built:
    path = factory.getbasetemp() / f"{name}.pt2"
    also = [((), call) for call in calls[1:]]
    options = {"path": path, "config": CONFIG, "also": also}
    toma_fx.export(model, (), calls[0], **options)
    return Built(model, calls[0], path)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.xdist_group("packages"))


@pytest.fixture(scope="session")
def sdxl_package(tmp_path_factory: pytest.TempPathFactory) -> Built:
    model = sdxl(mid_block_type=None)
    return build(tmp_path_factory, "sdxl", model, sdxl_inputs(model, 16, 16, batch=1))


@pytest.fixture(scope="session")
def flux_package(tmp_path_factory: pytest.TempPathFactory) -> Built:
    model = flux(num_layers=1, num_single_layers=1)
    return build(tmp_path_factory, "flux", model, flux_inputs(model, 8, 8, text=8))


@pytest.fixture(scope="session")
def small_package(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Two resolutions in one."""
    return build(tmp_path_factory, "small", Small(), small_call(), small_call(8, 12))


@pytest.fixture
def small(small_package: Built) -> toma_fx.LoadedModel:
    """Loaded anew for each test."""
    return toma_fx.load(small_package.path)


@pytest.fixture
def jitted() -> Callable[[nn.Module], Callable[..., Any]]:
    """The same model through `torch.compile`; the eager backend computes what Inductor would."""
    torch._dynamo.reset()
    fields = {name: getattr(CONFIG, name) for name in toma_fx.TomaConfig.field_names()}
    options = {"inner_backend": "eager", **fields}
    return lambda model: torch.compile(model, backend="toma", options=options)
