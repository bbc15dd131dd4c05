"""A server's package: its calls are those of the pipeline, and its pictures those of `apply`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
import torch._inductor.config

from examples.serve import package
from examples.serve.lanes import lanes_of
from examples.serve.orders import Order
from examples.serve.painter import Painter
from tests.examples.serve.conftest import SQUARE, WIDE, settings
from toma_fx import CallError, ConfigError

CPU = torch.device("cpu")
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(
        tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13),
        reason="torch before 2.13 cannot package the selection loop on a CPU",
    ),
]


def test_the_first_call_is_found_without_running_it() -> None:
    (lane,) = lanes_of(settings(model="emoji-flux").alone(), CPU)
    args, kwargs = package.first_call(lane, WIDE)
    assert args == ()
    assert kwargs["hidden_states"].shape == (1, 24, 48)
    assert not lane.denoiser._forward_pre_hooks


def test_a_field_that_needs_the_step_is_refused(tmp_path: Path) -> None:
    given = settings(merging={"merge_steps": (0.0, 0.5)})
    with pytest.raises(ConfigError, match="merge_steps"):
        package.write(given, tmp_path / "a.pt2", CPU)


def test_packages_paint_what_apply_paints(tmp_path: Path) -> None:
    """To a level of 255: native code rounds otherwise. In turns exactly what they paint alone."""
    given = settings(model="emoji-flux", sizes=(SQUARE,))
    with torch._inductor.config.patch("aot_inductor.compile_wrapper_opt_level", "O0"):
        path = package.write(given, tmp_path / "tiny.pt2", CPU)
    applied = Painter(given.alone(), CPU)
    packaged = replace(given, package=path, merging={})
    painter = Painter(packaged, CPU)
    orders = [Order("red apple", seed, SQUARE, steps) for seed in (1, 2) for steps in (4, 7)]
    wanted = [painter.paint(order).tobytes() for order in orders]
    for order, found in zip(orders, wanted, strict=True):
        other = numpy.frombuffer(applied.paint(order).tobytes(), numpy.uint8).astype(int)
        assert abs(numpy.frombuffer(found, numpy.uint8) - other).max() <= 1
    assert all("0 of" not in said for said in painter.merging.values())
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(lambda o: painter.paint(o).tobytes(), orders)) == wanted
    with pytest.raises(CallError, match="was not built for this call"):
        Painter(replace(packaged, sizes=(SQUARE, WIDE)), CPU)
