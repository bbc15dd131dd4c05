"""The guard outside of any graph: what a denoiser's call says is due, for blocks that ask.

The rules are those of `toma_fx.guard`, run eagerly where the latents lie. What they read is told by
the names of the arguments, as there is no graph to tell it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path

from toma_fx import guard
from toma_fx.arguments import Arguments, Call
from toma_fx.config import TomaConfig
from toma_fx.fingerprint import SAMPLES, samples
from toma_fx.operations import SELECT, WEIGH
from toma_fx.passes.methods.slots import MOMENT
from toma_fx.seen import Seen

Moment = dict[str, Tensor]
"""What a graph has as inputs, by name."""


Fingerprint = Callable[[list[Tensor], torch.device], Tensor]
"""Of all bits of some tensors, on a device."""


class Schedule(NamedTuple):
    """What a guard goes by: graphs of one schedule share one."""

    select_every: int
    weigh_every: int
    take_turns: bool
    rises: bool
    reads_conditioning: bool
    slots: int
    timestep_input: str | None

    @classmethod
    def of(cls, config: TomaConfig) -> Schedule:
        reads = "conditioning" in config.guard
        every = config.select_every, config.weigh_every
        slots = config.slots if reads else 1
        told = ("turns" in config.guard, "rises" in config.guard)
        return cls(*every, *told, reads, slots, config.timestep_input)


class Parts(NamedTuple):
    """What a guard reads of a call."""

    timestep: Tensor
    latents: list[Tensor]
    conditioning: list[Tensor]
    form: tuple[Any, ...]
    device: torch.device


def parts_of(arguments: Arguments, given: Call, schedule: Schedule) -> Parts | None:
    """Sort the tensors of a call by the names of its arguments.

    Latents are what may be another at each step: the first argument, residuals of a control
    network, and other times. A tensor that is taken for conditioning wrongly costs a selection.
    """
    named = arguments.by_name(given)
    name = schedule.timestep_input or arguments.timestep_name
    timestep = named.pop(name, None)
    leaves = [
        (keystr(path), leaf)
        for path, leaf in tree_flatten_with_path(named)[0]
        if isinstance(leaf, Tensor)
    ]
    first = f"['{arguments.latents_name}']"
    latents = [t for path, t in leaves if path.startswith(first) or _moves(path, t)]
    texts = [t for path, t in leaves if not (path.startswith(first) or _moves(path, t))]
    if not isinstance(timestep, Tensor | int | float) or not leaves:
        return None
    device = (latents or texts)[0].device
    if not isinstance(timestep, Tensor):
        timestep = torch.full((), timestep, dtype=torch.float64, device=device)
    elif timestep.dim() > 1:  # a time for each token: those that are known already stay at 0
        timestep = timestep.flatten(1).amax(1)
    texts = texts if schedule.reads_conditioning else []
    form = (tuple(timestep.shape), *((path, t.shape, t.dtype) for path, t in leaves))
    return Parts(timestep.to(device, non_blocking=True), latents, texts, form, device)


def _moves(path: str, tensor: Tensor) -> bool:
    names = ("block_samples", "residual", "controlnet")
    return any(name in path for name in names) or ("timestep" in path and tensor.dim() < 2)


class EagerGuard:
    """The state of `guard.decide` for one form of calls, and what it found last.

    The tensors of a moment stay where they are: CUDA graphs read them there.
    """

    def __init__(self, schedule: Schedule, parts: Parts) -> None:
        device, slots = parts.device, schedule.slots
        size = parts.timestep.numel() + len(parts.latents) * (SAMPLES + _PRINT)
        size += len(parts.conditioning) * _PRINT
        self.tally = guard.cold_tally(device)
        self.seen = Seen()  # conditionings of calls that have computed, where steps may rest
        self._schedule = schedule
        self._memory = torch.zeros(slots, size, device=device)
        self._slots = torch.zeros(slots, guard.SLOT_SIZE, dtype=torch.int64, device=device)
        self._numbers = torch.zeros(slots, 3, dtype=torch.int64, device=device)
        self._calls = torch.zeros(slots, dtype=torch.int64, device=device)  # of each generation
        self._moment = {
            f"{MOMENT}told": torch.zeros(4, dtype=torch.int64, device=device),
            f"{MOMENT}slot": torch.zeros(1, dtype=torch.int64, device=device),
            f"{MOMENT}call": torch.zeros((), dtype=torch.int64, device=device),
        }

    @property
    def slots(self) -> int:
        """How many conditionings are kept apart."""
        return self._schedule.slots

    def forget(self) -> None:
        """Every picture begins anew."""
        self.tally[guard.FRESH] = guard.RESET
        self.seen = Seen()

    def advance(
        self, parts: Parts, number: int, fingerprint: Fingerprint, rests: bool = False
    ) -> Moment:
        """What is due at a call of this number; one that rests goes on with its slot."""
        how, device = self._schedule, parts.device
        latents = [tensor.detach() for tensor in parts.latents]
        phase, step, fresh, slot, *after = guard.decide(
            *self._state,
            parts.timestep.detach(),
            samples(latents) if latents else None,
            fingerprint(parts.latents, device) if latents else None,
            fingerprint(parts.conditioning, device) if parts.conditioning else None,
            None,
            how.select_every,
            how.weigh_every,
            how.take_turns,
            rests,
            how.rises,
        )
        if rests:
            after = guard.unless(fresh, *self._state, *after)
        for kept, value in zip(self._state, after, strict=True):
            kept.copy_(value)
        happened = torch.stack((fresh, phase == SELECT, phase >= WEIGH))
        row = self._numbers.index_select(0, slot).squeeze(0)
        row = torch.where(happened, number, row)
        self._numbers.index_copy_(0, slot, row.unsqueeze(0))
        self._moment[f"{MOMENT}told"].copy_(torch.cat((row, step.reshape(1))))
        self._moment[f"{MOMENT}slot"].copy_(slot)
        call = torch.where(fresh, 0, self._calls.index_select(0, slot) + 1)
        self._calls.index_copy_(0, slot, call)
        self._moment[f"{MOMENT}call"].copy_(call.squeeze(0))
        return self._moment

    @property
    def _state(self) -> tuple[Tensor, Tensor, Tensor]:
        return self._memory, self._slots, self.tally


_PRINT = 12  # numbers of a fingerprint
