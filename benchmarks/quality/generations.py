"""Where generations begin, told by the scheduler: each begins with timesteps of its own."""

from __future__ import annotations

from typing import Any


class Generations:
    """Follows the calls of one denoiser.

    Args:
        pipeline: anything with a `scheduler`, which makes new timesteps for each generation, also
            for one after another that failed half way.
    """

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._timesteps: object = None

    def begins(self) -> bool:
        """Whether this call is the first of a generation; ask once a call."""
        timesteps = self._pipeline.scheduler.timesteps
        fresh = timesteps is not self._timesteps
        self._timesteps = timesteps
        return fresh
