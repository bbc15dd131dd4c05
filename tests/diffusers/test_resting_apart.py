"""Steps that rest, and dense ones, with blocks compiled apart: as where the whole is compiled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.apart import CHANNELS, Denoiser, seeded
from tests.diffusers.door import EAGER, compiles, fresh, no_recompile, ran
from tests.diffusers.test_resting import FALLING, Line, config, gives_up, near
from tests.pipelines import Pipe, flux_pipe, sdxl_pipe
from toma_fx import reset, reuse_stats
from toma_fx.diffusers import apply, disable, enable
from toma_fx.diffusers.regional import blocks_of

__all__ = ["fresh"]  # the fixture of these tests

PIPES = {"sdxl": sdxl_pipe, "flux": flux_pipe}
FIRST, SECOND = ({"prompt": n, "seed": n, "steps": 10} for n in (1, 2))


def generations(pipe: Pipe, regional: bool, **changes: Any) -> list[Tensor]:
    how = config(scope="block", **changes)
    enable(pipe.pipeline, how, regional=regional, fullgraph=True, **EAGER)
    return [pipe.run(**call) for call in (FIRST, SECOND)]


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"rest_every": 2}, {"merged": 5, "resting": 5}),
        ({"dense_steps": (0, -1)}, {"merged": 8, "dense": 2}),
        (
            {"rest_every": 3, "dense_steps": (0, 5), "extrapolate": "fit"},
            {"merged": 6, "resting": 2, "dense": 2},
        ),
    ],
    ids=["resting", "dense", "both"],
)
@pytest.mark.parametrize("name", PIPES)
def test_pictures_are_those_of_the_whole_denoiser(
    name: str, changes: dict[str, Any], steps: dict[str, int]
) -> None:
    """Two generations; each class of blocks compiles once for each pace."""
    pipe = PIPES[name]()
    wanted = generations(pipe, regional=False, **changes)
    before = compiles()
    found = generations(pipe, regional=True, **changes)
    classes = {type(block) for block in blocks_of(pipe.denoiser)}
    assert compiles() - before == len(steps) * len(classes)
    assert ran(pipe.pipeline) == steps
    assert all(near(a, b) for a, b in zip(found, wanted, strict=True))
    assert not near(found[0], generations(pipe, regional=True)[0])
    disable(pipe.pipeline)


def test_a_picture_that_is_given_up_leaves_nothing_behind() -> None:
    pipe = flux_pipe()
    apply(pipe.pipeline, config(rest_every=2), regional=True, **EAGER)
    found = pipe.run(**FIRST)
    with no_recompile():
        for stop in (1, 2):
            gives_up(pipe, stop)
            assert torch.equal(pipe.run(**FIRST), found)
    assert reuse_stats(pipe.denoiser).steps == 3 * 10 + 2 + 3


def test_guidance_in_turns_rests_with_both_halves() -> None:
    pipe = flux_pipe()
    negative = {f"negative_{name}": value for name, value in pipe.prompts(9, 1).items()}
    call: dict[str, Any] = {**negative, "true_cfg_scale": 3.0, "steps": 6}
    pictures = []
    for regional in (False, True):
        enable(pipe.pipeline, config(rest_every=2), regional=regional, **EAGER)
        pictures.append(pipe.run(**call))
        assert ran(pipe.pipeline) == {"merged": 3, "resting": 3}
    assert near(*pictures)
    # With one slot the halves take each other's memory away, and no step can rest.
    enable(pipe.pipeline, config(rest_every=2, slots=1), regional=True, **EAGER)
    pipe.run(**call)
    assert ran(pipe.pipeline) == {"merged": 6}
    disable(pipe.pipeline)


class Tokens(Line):
    """Steps of a denoiser of blocks on tokens."""

    def step(self, number: int, prompt: Tensor, seed: int = 0) -> Tensor:
        noise = seeded(10 * seed + number, 1, 64, CHANNELS)
        found: Tensor = self.unet(noise, self.scheduler.timesteps[number], prompt)
        return found


def line(model: Denoiser | None = None) -> Tokens:
    found = Tokens(model or Denoiser())
    apply(found, config(rest_every=2, grid=(8, 8)), regional=True, **EAGER)
    return found


def test_a_prompt_that_changes_computes_first() -> None:
    """Nothing is remembered under it; the call that cannot rest is not counted twice."""
    one, two, given = seeded(1, 1, 6), seeded(2, 1, 6), line()
    given.begin(*FALLING)
    for step in range(6):
        given.step(step, one if step < 3 else two)
    assert ran(given) == {"merged": 4, "resting": 2}  # 0, 2, 3, 4 and 1, 5
    assert reuse_stats(given.unet).steps == 6


def test_what_was_forgotten_is_computed() -> None:
    prompt, given = seeded(1, 1, 6), line()
    given.begin(*FALLING)
    given.step(0, prompt)
    reset(given.unet)
    given.step(1, prompt)
    assert ran(given) == {"merged": 2}
    given.step(2, prompt)
    given.step(3, prompt)
    assert ran(given) == {"merged": 3, "resting": 1}


def test_times_that_rise_rest_as_well() -> None:
    prompt, given, other = seeded(1, 1, 6), line(), line()
    given.begin(*reversed(FALLING))
    found = [given.step(step, prompt) for step in range(4)]
    assert ran(given) == {"merged": 2, "resting": 2}
    other.begin(FALLING[3], FALLING[2])
    for number, step in enumerate((2, 3)):
        noise = seeded(step, 1, 64, CHANNELS)
        time = other.scheduler.timesteps[number]
        assert torch.equal(other.unet(noise, time, prompt), found[step])


def test_a_block_that_was_left_out_computes_first() -> None:
    """Where a step should rest and one block remembers nothing, the whole call computes."""
    prompt, given = seeded(1, 1, 6), line()
    given.begin(*FALLING)
    given.unet.skipped = {given.unet.blocks[1]}
    given.step(0, prompt)
    given.unet.skipped = set()
    given.step(1, prompt)
    assert ran(given) == {"merged": 2}
    given.step(2, prompt)
    given.step(3, prompt)
    assert ran(given) == {"merged": 3, "resting": 1}
