"""A replica without Ray: requests that take turns are what they are alone, whatever happens."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch

import toma_fx
from examples.serve import painter as painters
from examples.serve.orders import Order
from examples.serve.painter import CancelledError, Painter, UnhealthyError
from examples.serve.settings import Settings, Size
from tests.examples.serve.conftest import HIGH, SQUARE, WIDE, settings
from tests.pipelines import PIPES, Pipe
from toma_fx import reuse_stats

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore")

ORDERS = [
    Order(prompt, seed, size, steps)
    for seed, (prompt, size, steps) in enumerate(
        (
            ("red apple", SQUARE, 7),
            ("red apple", SQUARE, 7),  # another seed of one prompt and size
            ("banana", WIDE, 4),
            ("rose", HIGH, 9),
            ("red apple", SQUARE, 2),
            ("smiling cat", WIDE, 5),
        )
    )
]


def pixels(painter: Painter, order: Order, *cancelled: threading.Event) -> bytes:
    return painter.paint(order, *cancelled).tobytes()


@pytest.mark.parametrize(("model", "method"), [("emoji-sdxl", "toma"), ("emoji-flux", "refresh")])
def test_pictures_painted_at_once_are_those_painted_alone(model: str, method: str) -> None:
    merging = {**settings().merging, "method": method}
    given = settings(model=model, merging=merging, lanes=3)
    alone = Painter(replace(given, lanes=1), CPU)
    wanted = [pixels(alone, order) for order in ORDERS]
    assert len(set(wanted)) == len(ORDERS)
    painter = Painter(given, CPU)
    assert set(painter.merging) == {SQUARE, WIDE, HIGH}
    assert all("0 of" not in said and "merged" in said for said in painter.merging.values())
    with torch._dynamo.config.patch(error_on_recompile=True), ThreadPoolExecutor(3) as threads:
        for _ in range(2):
            found = threads.map(lambda order: pixels(painter, order), ORDERS)
            assert list(found) == wanted
    assert painter.about()["painted"] == 2 * len(ORDERS)
    assert painter.about()["busy"] == 0


def test_streams_are_as_many_as_lanes() -> None:
    painter = Painter(settings(lanes=2, sizes=(SQUARE,)), CPU)
    for order in [replace(ORDERS[0], seed=seed) for seed in range(8)]:
        painter.paint(order)
    kept = toma_fx.reuse._of(_denoiser(painter))
    assert len(kept) == 2
    assert reuse_stats(_denoiser(painter)).reuses > 0


def test_a_picture_that_is_cancelled_ends_soon_and_harms_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gone, steps = threading.Event(), []
    after_step = Painter._after_step

    def leaves(self: Painter, place: Any) -> None:
        steps.append(place)
        if len(steps) == 3:
            gone.set()
        after_step(self, place)

    monkeypatch.setattr(Painter, "_after_step", leaves)
    painter = Painter(settings(lanes=2, sizes=(SQUARE,)), CPU)
    wanted = [pixels(painter, order) for order in ORDERS[:2]]
    steps.clear()
    gone.clear()
    with pytest.raises(CancelledError):
        painter.paint(replace(ORDERS[0], steps=50), gone)
    assert len(steps) == 3
    for _ in range(2):  # both lanes
        assert [pixels(painter, order) for order in ORDERS[:2]] == wanted
    assert painter.about()["cancelled"] == 1
    painter.check()


def test_one_that_is_cancelled_before_its_turn_is_not_painted() -> None:
    painter = Painter(settings(lanes=1, sizes=(SQUARE,)), CPU)
    gone = threading.Event()
    gone.set()
    with pytest.raises(CancelledError):
        painter.paint(ORDERS[0], gone)
    painter.paint(ORDERS[0])


def test_a_replica_that_fails_again_and_again_is_unhealthy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    painter = Painter(settings(lanes=2, sizes=(SQUARE,)), CPU)
    wanted = pixels(painter, ORDERS[0])

    def fail(*given: Any, **named: Any) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as broken:
        broken.setattr("toma_fx.demo.generators.generate", fail)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="out of memory"):
                painter.paint(ORDERS[0])
    painter.check()
    assert pixels(painter, ORDERS[0]) == wanted  # which counts from the beginning again
    monkeypatch.setattr("toma_fx.demo.generators.generate", fail)
    for _ in range(3):
        with pytest.raises(RuntimeError):
            painter.paint(ORDERS[0])
    with pytest.raises(UnhealthyError, match="last 3 pictures failed"):
        painter.check()


def test_a_replica_that_stands_still_is_unhealthy(monkeypatch: pytest.MonkeyPatch) -> None:
    painter = Painter(settings(lanes=1, sizes=(SQUARE,)), CPU)
    monkeypatch.setattr(painters, "_STALLED", 0.0)
    painter.check()  # nothing is under way
    with painter._place(threading.Event()):
        time.sleep(0.01)
        with pytest.raises(UnhealthyError, match="no step has ended"):
            painter.check()


def test_a_size_that_merges_nothing_says_why() -> None:
    merging = {**settings().merging, "min_tokens": 1000}
    painter = Painter(settings(sizes=(SQUARE,), merging=merging), CPU)
    assert "nothing is merged" in painter.merging[SQUARE]
    assert "min_tokens" in painter.merging[SQUARE]


def prompted(pipe: Pipe) -> Any:
    """A small pipeline that takes prompts, as a full one does."""

    class Prompted(type(pipe.pipeline)):  # type: ignore[misc]
        def __call__(self, prompt: str, **given: Any) -> Any:
            return super().__call__(**{**pipe.prompts(len(prompt), 1), **given})

    pipe.pipeline.__class__ = Prompted
    return pipe.pipeline


@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_pipelines_of_diffusers_take_turns_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = prompted(PIPES[name]())
    monkeypatch.setattr(
        "examples.serve.lanes.DiffusionPipeline.from_pretrained",
        lambda *given, **named: pipeline,
    )
    merging = {"regions": "all", "window": 4, "min_tokens": 16}
    sizes = (Size(64, 64), Size(64, 32))
    given = Settings("/a/folder", sizes, 2, lanes=2, backend="eager", merging=merging)
    painter = Painter(given, CPU)
    assert all("regions merged" in said for said in painter.merging.values())
    orders = [
        Order(prompt, seed, size, 4 + seed)
        for seed, (prompt, size) in enumerate(
            [("red apple", sizes[0]), ("red apple", sizes[0]), ("banana", sizes[1])]
        )
    ]
    wanted = [pixels(painter, order) for order in orders]
    with ThreadPoolExecutor(2) as threads:
        for _ in range(2):
            assert list(threads.map(lambda order: pixels(painter, order), orders)) == wanted


def _denoiser(painter: Painter) -> torch.nn.Module:
    place = painter._free.get()
    painter._free.put(place)
    return place.lane.denoiser
