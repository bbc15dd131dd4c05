"""The guard under diffusers' own schedulers: their timesteps, and latents that they really make.

The denoiser is exact for pictures that are one of four blurred noises with a little of its own, so
that the latents of a picture move as those of a trained model do.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import diffusers
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.test_guard import REUSE, SELECT, WEIGH
from toma_fx import guard
from toma_fx.fingerprint import fingerprint, samples

EVERY = 3


class Call(NamedTuple):
    """What a model sees."""

    timestep: Tensor
    latents: Tensor


class Watched:
    """The guard of one model, from call to call."""

    def __init__(self) -> None:
        self.state: list[Tensor] | None = None

    def phase(self, call: Call, prompt: float = 0.0) -> int:
        parts = (
            call.timestep,
            samples([call.latents]),
            fingerprint([call.latents]),
            fingerprint([torch.tensor([prompt])]),
            None,
        )
        if self.state is None:
            memory = torch.zeros(2, sum(part.numel() for part in parts if part is not None))
            slots = torch.zeros(2, guard.SLOT_SIZE, dtype=torch.int64)
            self.state = [memory, slots, guard.cold_tally(memory.device)]
        phase, *_, memory, slots, tally = guard.decide(*self.state, *parts, EVERY, EVERY, False)
        self.state = [memory, slots, tally]
        return int(phase)


def templates() -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    coarse = torch.randn(4, 1, 4, 4, 4, generator=generator)
    fine = [F.interpolate(one, size=16, mode="bilinear") for one in coarse]
    return [one / one.std() for one in fine]


TEMPLATES, OWN = templates(), 0.3


def clean(noisy: Tensor, signal: float, noise: float) -> Tensor:
    """The expected picture in `signal · picture + noise · ε`."""
    spread = noise**2 + (signal * OWN) ** 2
    left = [noisy - signal * one for one in TEMPLATES]
    odds = torch.stack([-one.square().sum() / (2 * spread) for one in left]).softmax(0)
    kept = signal * OWN**2 / spread
    parts = zip(odds, TEMPLATES, left, strict=True)
    return torch.stack([p * (one + kept * rest) for p, one, rest in parts]).sum(0)


STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def scheduler_of(name: str, **settings: Any) -> Any:
    flow = name.startswith("FlowMatch")
    return getattr(diffusers, name)(**({} if flow else STABLE), **settings)


def picture(name: str, steps: int, seed: int = 0, skip: int = 0, **settings: Any) -> list[Call]:
    """The calls of one picture; `skip` steps are left out at its begin, as for img2img."""
    scheduler = scheduler_of(name, **settings)
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 4, 16, 16, generator=generator) * getattr(scheduler, "init_noise_sigma", 1)
    timesteps = scheduler.timesteps[skip * scheduler.order :]
    if skip:
        scheduler.set_begin_index(skip * scheduler.order)
        start = timesteps[:1]
        mix = scheduler.scale_noise if hasattr(scheduler, "scale_noise") else scheduler.add_noise
        given = (start, x) if hasattr(scheduler, "scale_noise") else (x, start)
        x = mix(TEMPLATES[0], *given)
    calls, random = [], {"generator": generator} if "Ancestral" in name else {}
    for timestep in timesteps:
        scaled = getattr(scheduler, "scale_model_input", lambda x, _: x)(x, timestep)
        calls.append(Call(timestep, scaled))
        x = scheduler.step(answer(scheduler, scaled, float(timestep)), timestep, x, **random)[0]
    return calls


def answer(scheduler: Any, x: Tensor, timestep: float) -> Tensor:
    """What the scheduler asks a model for: a velocity, or noise."""
    if "FlowMatch" in type(scheduler).__name__:
        noise = max(timestep / 1000, 1e-3)
        return (x - clean(x, 1 - noise, noise)) / noise
    kept = float(scheduler.alphas_cumprod[round(timestep)])
    signal, noise = math.sqrt(kept), math.sqrt(1 - kept)
    return (x - signal * clean(x, signal, noise)) / noise


def phases(calls: list[Call], watched: Watched | None = None) -> list[int]:
    watched = watched or Watched()
    return [watched.phase(call) for call in calls]


FALLING = (
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "LCMScheduler",
    "KDPM2DiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
)
REPEATING = (
    "HeunDiscreteScheduler",
    "PNDMScheduler",
    "FlowMatchHeunDiscreteScheduler",
)


@pytest.mark.parametrize("name", [*FALLING, *REPEATING])
@pytest.mark.parametrize("steps", [4, 10])
def test_every_scheduler_selects_as_often_as_euler(name: str, steps: int) -> None:
    """For the same number of calls; Heun, PNDM and others repeat timesteps on their way."""
    calls = picture(name, steps)
    times = [float(call.timestep) for call in calls]
    repeats = sum(a == b for a, b in itertools.pairwise(times))
    assert (repeats > 0) == (name in REPEATING)
    expected = [SELECT if place % EVERY == 0 else REUSE for place in range(len(calls))]
    assert [REUSE if p == WEIGH else p for p in phases(calls)] == expected


def test_pndm_without_runge_kutta_repeats_its_second_timestep() -> None:
    calls = picture("PNDMScheduler", 8, skip_prk_steps=True)
    assert len(calls) == 9
    assert phases(calls) == [SELECT, REUSE, REUSE] * 3


def test_timesteps_that_almost_repeat_cost_a_selection_at_most() -> None:
    """Those of this one differ in their sixth digit, or not at all, as rounding has it."""
    for steps in (4, 10, 20):
        calls = picture("KDPM2AncestralDiscreteScheduler", steps)
        assert phases(calls).count(SELECT) <= math.ceil(len(calls) / EVERY) + 1


def test_img2img_goes_on_likewise() -> None:
    for name in ("EulerDiscreteScheduler", "HeunDiscreteScheduler"):
        calls = picture(name, 12, skip=6)
        assert phases(calls).count(SELECT) == math.ceil(len(calls) / EVERY), name


def test_an_inversion_selects_at_every_call() -> None:
    scheduler = diffusers.DDIMInverseScheduler(**STABLE)
    scheduler.set_timesteps(6)
    latents = TEMPLATES[0]
    assert phases(
        [Call(t, latents * (1 + 0.1 * n)) for n, t in enumerate(scheduler.timesteps)]
    ) == ([SELECT] * 6)


def pictures() -> Iterator[tuple[str, dict[str, Any], int, int | None]]:
    """Scheduler, its settings, steps, and after how many calls it is abandoned."""
    for spacing in ("linspace", "leading", "trailing"):
        for steps, until in ((1, None), (2, None), (2, 1), (5, None), (5, 1), (5, 2), (5, 4)):
            settings = {"timestep_spacing": spacing, "steps_offset": 1}
            yield "EulerDiscreteScheduler", settings, steps, until
            yield "HeunDiscreteScheduler", settings, steps, until


def test_no_picture_depends_on_the_one_before_it() -> None:
    """One prompt, other seeds: whole and abandoned pictures of one step and of several."""
    made = {
        (name, str(settings), steps, until, seed): picture(name, steps, seed, **settings)[:until]
        for name, settings, steps, until in pictures()
        for seed in (1, 2)
    }
    compared = 0
    for before, earlier in made.items():
        for after, later in made.items():
            same = before[:2] == after[:2] and (before[4], after[4]) == (1, 2)
            # What no guard can see: one that begins below where the one before it ended.
            if not same or later[0].timestep < earlier[-1].timestep:
                continue
            watched = Watched()
            phases(earlier, watched)
            assert phases(later, watched) == phases(later), (before, after)
            compared += 1
    assert compared > 200
