"""Where a pipeline stands in its generation, read on the host.

The timestep lies on the device, and reading it would wait for it. But at the start of every
generation a pipeline asks its scheduler for timesteps, which makes a new tensor: its identity
tells generations apart, also after one that failed half way.
"""

from __future__ import annotations

import weakref
from typing import Any


class Progress:
    """Follows the scheduler of a pipeline; whichever it has at the time.

    Args:
        pipeline: anything with a `scheduler`; held weakly.
    """

    def __init__(self, pipeline: object) -> None:
        self._pipeline = weakref.ref(pipeline)
        self._timesteps: object = None
        self._timestep: object = None
        self._steps = 0

    @property
    def pipeline(self) -> Any:
        return self._pipeline()

    def begins(self) -> bool:
        """Whether this call is the first of a generation. Ask once a call."""
        timesteps = getattr(self._scheduler, "timesteps", None)
        fresh = timesteps is not self._timesteps
        self._timesteps = timesteps
        if fresh:
            self._timestep, self._steps = None, 0
        return fresh

    def fraction(self, timestep: object) -> float:
        """The share of the schedule that lies behind this call, in [0, 1).

        Args:
            timestep: the denoiser's argument. Schedulers without a `step_index` are followed by
                it: pipelines hand over one object a step.
        """
        if timestep is not self._timestep:
            self._steps += self._timestep is not None
            self._timestep = timestep
        scheduler = self._scheduler
        done = scheduler.step_index or 0 if hasattr(scheduler, "step_index") else self._steps
        return float(done / max(len(scheduler.timesteps), 1))

    @property
    def _scheduler(self) -> Any:
        return getattr(self.pipeline, "scheduler", None)
