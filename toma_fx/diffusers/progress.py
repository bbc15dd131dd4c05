"""Which pipeline calls a denoiser, and where it stands in its picture, read on the host.

The timestep lies on the device, and reading it would wait for it. But at the start of every picture
a pipeline asks its scheduler for timesteps, which makes a new tensor, and hands parts of that one
to the denoiser: which tensor a timestep is part of tells pictures apart, and its place in it tells
steps. Pipelines that hand over copies are followed by their scheduler.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from toma_fx.diffusers.caller import announced, mark
from toma_fx.streams import DEFAULT_STREAM


@dataclass(frozen=True)
class Moment:
    """Where a call of the denoiser stands.

    Attributes:
        begins: whether it is the first of a picture.
        step: of the picture, from 0; None where nobody can tell.
        steps: of the picture; None likewise.
        pipeline: the one that calls; None where it is not one that is followed.
        picture: an object of its own for each; None where nobody can tell.
    """

    begins: bool = False
    step: int | None = None
    steps: int | None = None
    pipeline: Any = None
    picture: object = None

    @property
    def share(self) -> float | None:
        """Of the picture's steps, what lies behind the call, in [0, 1); None likewise."""
        return None if self.step is None or self.steps is None else self.step / self.steps


class Progress:
    """Follows the pipelines that share a denoiser; each is held weakly.

    In each stream one picture is under way. Pictures of several streams may take turns.
    """

    def __init__(self) -> None:
        self._followed: list[_Followed] = []
        # By stream; held, so that their memory is not taken by others.
        self._schedules: dict[str, Tensor] = {}

    @property
    def pipelines(self) -> list[Any]:
        """Those that still exist."""
        return [p for p in (followed.pipeline() for followed in self._followed) if p is not None]

    def add(self, pipeline: object) -> None:
        """Follow a pipeline from its next picture on."""
        self._followed.append(_Followed(weakref.ref(pipeline), _timesteps(pipeline)))
        mark(pipeline)

    def drop(self, pipeline: object) -> None:
        self._followed = [f for f in self._followed if f.pipeline() not in (pipeline, None)]

    def follow(self, timestep: object, stream: str = DEFAULT_STREAM) -> Moment:
        """Where a call stands; ask once a call.

        Args:
            timestep: the denoiser's argument.
            stream: that the call belongs to.
        """
        schedule = self._source(timestep, stream)
        if schedule is None:
            return Moment()
        sharing = [f for f in self._followed if _timesteps(f.pipeline()) is schedule]
        picture = _pictures.get(schedule)
        if picture is None:
            pipelines = [followed.pipeline() for followed in sharing]
            picture = _pictures[schedule] = _Picture(schedule, pipelines, timestep)
        begins = schedule is not self._schedules.get(stream)
        self._schedules[stream] = schedule
        for followed in sharing:
            followed.seen, followed.stream = schedule, stream
        return picture.moment(schedule, timestep, begins)

    def _source(self, timestep: object, stream: str) -> Tensor | None:
        """The schedule that a timestep comes from; None where that is not clear."""
        schedules = [s for s in map(_timesteps, self.pipelines) if s is not None]
        if isinstance(timestep, Tensor) and _is_part(timestep):
            known = [*schedules, *self._schedules.values()]
            same = [schedule for schedule in known if _shares_memory(timestep, schedule)]
            return same[0] if same else timestep
        # Copies tell nothing: they are of a picture that begins, or go on with the stream's own,
        # until it is done. A pipeline that painted in another stream is likely to paint there.
        mine, others = self._fresh(stream)
        for found in (mine, self._unfinished(stream, schedules), others):
            if found is not None:
                return found
        return None

    def _fresh(self, stream: str) -> tuple[Tensor | None, Tensor | None]:
        """Timesteps that are new, of a pipeline of this stream or of none, and of other streams."""
        found: dict[bool, Tensor] = {}
        for followed in self._followed:
            timesteps = _timesteps(followed.pipeline())
            if timesteps is not None and timesteps is not followed.seen:
                found.setdefault(followed.stream in (stream, None), timesteps)
        return found.get(True), found.get(False)

    def _unfinished(self, stream: str, schedules: list[Tensor]) -> Tensor | None:
        """Timesteps of the picture that is under way in a stream."""
        current = self._schedules.get(stream)
        for pipeline in self.pipelines:
            mine = _timesteps(pipeline)
            only = current is None and len(schedules) == 1
            if mine is not None and (mine is current or only) and not _is_done(pipeline):
                return mine
        return None


@dataclass
class _Followed:
    """A pipeline, and the timesteps that its scheduler had when last seen, and in which stream."""

    pipeline: weakref.ref[Any]
    seen: Tensor | None
    stream: str | None = None


class _Picture:
    """One run through a schedule, or through the part of it that runs.

    Args:
        schedule: the timesteps, or one of them that is part of a schedule nobody here has.
        candidates: pipelines whose scheduler has that schedule.
        timestep: of the first call.
    """

    def __init__(self, schedule: Tensor, candidates: list[Any], timestep: object) -> None:
        # The schedule keeps this picture, so that nothing here may keep the schedule.
        self._scheduler = _weak(candidates[0].scheduler if candidates else None)
        self._pipeline = _weak(announced(candidates))
        self._timestep = _weak(timestep)
        self._counted = 0
        start = getattr(self._scheduler(), "begin_index", None)
        self._start = self._place(schedule, timestep) if start is None else int(start)
        for candidate in candidates:
            mark(candidate)

    def moment(self, schedule: Tensor, timestep: object, begins: bool) -> Moment:
        """Where a call with this timestep stands."""
        pipeline = self._pipeline()
        if pipeline is not None:
            mark(pipeline)  # its callbacks may change the guidance on the way
        if timestep is not self._timestep():
            self._counted += 1
            self._timestep = _weak(timestep)
        steps = self._steps(schedule, pipeline)
        step = min(max(self._place(schedule, timestep) - self._start, 0), steps - 1)
        return Moment(begins, step, steps, pipeline, self)

    def _steps(self, schedule: Tensor, pipeline: object) -> int:
        """How many steps run, as far as the schedule or the pipeline tells."""
        whole = max(_length(schedule) - self._start, 1)
        told = getattr(pipeline, "num_timesteps", None)
        return told if isinstance(told, int) and 0 < told < whole else whole

    def _place(self, schedule: Tensor, timestep: object) -> int:
        """Of a timestep among those of the schedule."""
        if isinstance(timestep, Tensor) and _shares_memory(timestep, schedule):
            if _is_part(schedule):
                return timestep.storage_offset()
            apart = max(schedule.stride(0), 1)
            return (timestep.storage_offset() - schedule.storage_offset()) // apart
        scheduler = self._scheduler()
        if hasattr(scheduler, "step_index"):
            start = getattr(scheduler, "begin_index", None) or 0
            return int(start if scheduler.step_index is None else scheduler.step_index)
        return self._counted


# By the schedule: the denoisers of one pipeline see the same picture.
_pictures: WeakIdKeyDictionary = WeakIdKeyDictionary()


def _weak(value: object) -> Callable[[], Any]:
    """A weak reference; numbers, which cannot have one, are kept."""
    try:
        return weakref.ref(value)
    except TypeError:
        return lambda: value


def _timesteps(pipeline: object) -> Tensor | None:
    found = getattr(getattr(pipeline, "scheduler", None), "timesteps", None)
    return found if isinstance(found, Tensor) else None


def _is_done(pipeline: Any) -> bool:
    """Whether the scheduler has made all of its steps: another call is not of this picture."""
    index = getattr(pipeline.scheduler, "step_index", None)
    return index is not None and index >= len(pipeline.scheduler.timesteps)


def _is_part(timestep: Tensor) -> bool:
    """Whether a tensor shows one element of a longer one."""
    single = timestep.numel() == 1 or not any(timestep.stride())
    return single and timestep.untyped_storage().nbytes() > timestep.element_size()


def _shares_memory(timestep: Tensor, schedule: Tensor) -> bool:
    one, other = timestep.untyped_storage(), schedule.untyped_storage()
    return bool(one._cdata == other._cdata)


def _length(schedule: Tensor) -> int:
    if _is_part(schedule):
        return schedule.untyped_storage().nbytes() // schedule.element_size()
    return len(schedule)
