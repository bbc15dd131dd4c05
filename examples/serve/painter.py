"""Orders to pictures: lanes, warm-up, cancellation and health. No Ray in here."""

from __future__ import annotations

import functools
import queue
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image

import toma_fx
from examples.serve import lanes
from examples.serve.lanes import Lane
from examples.serve.orders import Order
from examples.serve.settings import Settings, Size
from examples.serve.turns import Turns
from toma_fx.diffusers import apply, status
from toma_fx.errors import TomaError

_FAILURES = 3  # in a row, after which a replica is taken to be broken
_STALLED = 300.0  # seconds without a step while a picture is under way


class CancelledError(TomaError, RuntimeError):
    """Nobody waits for this picture any longer."""


class UnhealthyError(TomaError, RuntimeError):
    """This process will not paint again: start another."""


@dataclass(eq=False)
class _Place:
    """A lane, and the picture in it."""

    number: int
    lane: Lane
    cancelled: threading.Event = field(default_factory=threading.Event)


class Painter:
    """All that a replica does. `paint` may be called from as many threads as there are lanes.

    Nothing is compiled behind the start: all sizes are painted once in each lane.

    Args:
        settings: of the server.
        device: that it runs on.

    Attributes:
        merging: for each size what is merged, or why nothing is.
        counts: pictures by what became of them: `painted`, `cancelled`, `failed`.

    Raises:
        TomaError, DemoError, OSError: there is no such model or package.
        CallError: a package has no entry for one of the sizes.
    """

    def __init__(self, settings: Settings, device: torch.device) -> None:
        self.settings = settings
        self.merging: dict[Size, str] = {}
        self.counts: Counter[str] = Counter()
        self._turns = Turns()
        self._free: queue.SimpleQueue[_Place] = queue.SimpleQueue()
        self._busy: set[int] = set()
        self._failures = 0
        self._stepped = time.monotonic()
        found = lanes.lanes_of(settings, device)
        if settings.package is None:
            pipelines = [lane.pipeline for lane in found]
            limit = max(64, len(settings.sizes))
            options = {"inner_backend": settings.backend}
            apply(pipelines, settings.config(), options=options, recompile_limit=limit)
        self._warm_up([_Place(number, lane) for number, lane in enumerate(found)])

    def paint(self, order: Order, cancelled: threading.Event | None = None) -> Image.Image:
        """One picture. Waits for a lane, and takes turns with other lanes.

        Args:
            order: of one of the settings' sizes.
            cancelled: set from another thread where nobody waits for it any longer.

        Raises:
            CancelledError: after the step that was under way; the lane is free again.
        """
        with self._place(cancelled or threading.Event()) as place:
            try:
                image = self._paint(place, order)
            except CancelledError:
                self.counts["cancelled"] += 1
                raise
            except Exception:
                self.counts["failed"] += 1
                self._failures += 1
                raise
            self.counts["painted"] += 1
            self._failures = 0
            return image

    def check(self) -> None:
        """Whether it can be expected to paint.

        Raises:
            UnhealthyError: the last pictures failed, or no step ends.
        """
        if self._failures >= _FAILURES:
            raise UnhealthyError(f"the last {self._failures} pictures failed")
        waited = time.monotonic() - self._stepped
        if self._busy and waited > _STALLED:
            raise UnhealthyError(f"no step has ended for {waited:.0f} s")

    def about(self) -> dict[str, Any]:
        """For a page that says how it is; ready for JSON."""
        return {
            "model": self.settings.model,
            "sizes": {str(size): merging for size, merging in self.merging.items()},
            "busy": len(self._busy),
            **{name: self.counts[name] for name in ("painted", "cancelled", "failed")},
        }

    @contextmanager
    def _place(self, cancelled: threading.Event) -> Iterator[_Place]:
        place = self._free.get()
        place.cancelled = cancelled
        if not self._busy:
            self._stepped = time.monotonic()
        self._busy.add(place.number)
        try:
            yield place
        finally:
            self._busy.discard(place.number)
            self._free.put(place)

    def _paint(self, place: _Place, order: Order) -> Image.Image:
        with self._turns.turn(), lanes.on(place.lane, place.number):
            self._refuse_cancelled(place)
            return place.lane.paint(order)

    def _after_step(self, place: _Place) -> None:
        self._stepped = time.monotonic()
        self._turns.pass_on()
        self._refuse_cancelled(place)

    @staticmethod
    def _refuse_cancelled(place: _Place) -> None:
        if place.cancelled.is_set():
            raise CancelledError("nobody waits for this picture any longer")

    def _warm_up(self, places: list[_Place]) -> None:
        """The first lane compiles; the others make their plans, and are known by their streams."""
        for place in places:
            lanes.after_each_step(place.lane, functools.partial(self._after_step, place))
            for size in self.settings.sizes:
                self._paint(place, Order("warm-up", 0, size, self.settings.steps))
                self.merging.setdefault(size, self._merging(place.lane))
            self._free.put(place)

    @staticmethod
    def _merging(lane: Lane) -> str:
        """Of the picture that was painted last, which compiled what runs for its size."""
        if lane.package is not None:
            entries = [entry["report"]["regions"] for entry in lane.package.metadata["entries"]]
            merged = [[one["status"] == "merged" for one in regions] for regions in entries]
            return f"{min(map(sum, merged))} of {min(map(len, merged))} regions merged"
        found = status(lane.pipeline)
        if found.merged:
            return toma_fx.last_report().summary()
        reasons = [graph.reason for graph in found.graphs if graph.steps]
        return f"nothing is merged: {'; '.join(reasons)}"
