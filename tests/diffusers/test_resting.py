"""Steps that rest, and dense ones, behind the door: whole pipelines against blocks by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.diffusers.door import EAGER, Fold, compiles, fresh, no_recompile, picture, ran
from tests.eager_refresh import HandRefresh, remembered_by_hand
from tests.pipelines import PIPES, Pipe
from toma_fx import ConfigError, last_report, reset
from toma_fx.diffusers import TokenMergingConfig, apply, disable, enable, status
from toma_fx.passes.methods.pace import Computes
from toma_fx.share import Share

__all__ = ["fresh"]  # the fixture of these tests

REFRESH: dict[str, Any] = {"method": "refresh", "regions": "all", "min_tokens": 1}
KEYS = {"sdxl": "computed", "flux": "all"}


def config(**changes: Any) -> TokenMergingConfig:
    return TokenMergingConfig(**{**REFRESH, **changes})


def square(tokens: int) -> tuple[tuple[int, int], ...]:
    side = math.isqrt(tokens)
    return tuple((y, x) for y in range(side) for x in range(side))


def by_hand(
    name: str,
    pipe: Pipe,
    dense: tuple[int, ...] = (),
    rest_every: int = 2,
    halves: int = 1,
    **call: Any,
) -> Tensor:
    """A generation whose blocks remember by hand; guidance in turns has a memory for each half."""
    scope = {"sdxl": "block", "flux": "region"}[name]
    how = HandRefresh(Share(1, 2), square, KEYS[name], scope)
    memories: list[dict[str, Any]] = [{} for _ in range(halves)]
    calls = 0

    def before(*_: Any) -> None:
        step = calls // halves
        rests = step % rest_every == rest_every - 1
        how.computes = Computes.NONE if rests else Computes.SHARE
        how.computes = Computes.ALL if {step, step - call["steps"]} & set(dense) else how.computes
        how.memories = memories[calls % halves]

    def after(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls % halves == 0:
            how.after()

    model = pipe.denoiser
    hooks = (model.register_forward_pre_hook(before), model.register_forward_hook(after))
    try:
        with remembered_by_hand(model, how):
            return pipe.run(**call)
    finally:
        for hook in hooks:
            hook.remove()


def near(found: Tensor, wanted: Tensor) -> bool:
    return float((found - wanted).norm() / wanted.norm()) < 1e-4


def gives_up(pipe: Pipe, after: int) -> None:
    def stop(_: Any, step: int, *__: Any) -> dict[str, Any]:
        if step == after:
            raise InterruptedError
        return {}

    with pytest.raises(InterruptedError):
        pipe.run(prompt=5, seed=5, steps=6, callback_on_step_end=stop)


@pytest.fixture(scope="module")
def pipes() -> dict[str, Pipe]:
    return {name: PIPES[name]() for name in KEYS}


@pytest.fixture(params=KEYS)
def named(request: pytest.FixtureRequest, pipes: dict[str, Pipe]) -> Iterator[tuple[str, Pipe]]:
    yield request.param, pipes[request.param]
    disable(pipes[request.param].pipeline)


FIRST, SECOND = {"prompt": 1, "seed": 1, "steps": 6}, {"prompt": 2, "seed": 2, "steps": 5}


@pytest.mark.parametrize("dense", [(), (0, -2)], ids=["no dense step", "two dense steps"])
def test_pictures_are_those_of_blocks_by_hand(
    named: tuple[str, Pipe], dense: tuple[int, ...]
) -> None:
    """Two generations of other lengths, one given up in between; nothing compiles twice."""
    name, pipe = named
    wanted = [by_hand(name, pipe, dense, **call) for call in (FIRST, SECOND)]
    plain = pipe.run(**FIRST)
    apply(pipe.pipeline, config(rest_every=2, dense_steps=dense), fullgraph=True, **EAGER)
    before = compiles()
    first = pipe.run(**FIRST)
    assert near(first, wanted[0])
    assert not near(first, plain)
    assert compiles() == before + 2 + bool(dense)
    counts = {"merged": 3 - len(dense), "resting": 3, "dense": len(dense)}
    assert ran(pipe.pipeline) == {name: count for name, count in counts.items() if count}
    with no_recompile():
        for stop in (1, 2):  # behind a step that rests, and behind one that does not
            gives_up(pipe, stop)
            assert near(pipe.run(**SECOND), wanted[1])
        assert torch.equal(pipe.run(**FIRST), first)


def test_guidance_in_turns_rests_with_both_halves(pipes: dict[str, Pipe]) -> None:
    pipe = pipes["flux"]
    halves = pipe.prompts(9, 1)
    call = {
        **{f"negative_{name}": value for name, value in halves.items()},
        **{"true_cfg_scale": 3.0, "steps": 6},
    }
    wanted = by_hand("flux", pipe, halves=2, **call)
    apply(pipe.pipeline, config(rest_every=2), **EAGER)
    assert near(pipe.run(**call), wanted)
    assert ran(pipe.pipeline) == {"merged": 3, "resting": 3}
    # With one slot the halves take each other's memory away, and no step can rest.
    enable(pipe.pipeline, config(rest_every=2, slots=1), **EAGER)
    pipe.run(**call)
    assert ran(pipe.pipeline) == {"merged": 6}
    disable(pipe.pipeline)


class Told(Fold):
    """With a prompt."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.words = nn.Linear(8, 16)

    def forward(self, sample: Tensor, timestep: Any, prompt: Tensor) -> Tensor:  # type: ignore[override]
        words = self.words(prompt).mean(1)
        return self.fold(sample, timestep) + words[:, :, None, None]


class Scheduler:
    def __init__(self, timesteps: list[float]) -> None:
        self.timesteps = torch.tensor(timesteps)


class Line:
    """A pipeline that does what a test says."""

    def __init__(self, model: nn.Module) -> None:
        self.unet, self.scheduler = model, Scheduler([1.0])

    def begin(self, *timesteps: float) -> None:
        self.scheduler = Scheduler(list(timesteps))

    def step(self, number: int, prompt: Tensor, seed: int = 0) -> Tensor:
        found: Tensor = self.unet(
            picture(seed=10 * seed + number), self.scheduler.timesteps[number], prompt=prompt
        )
        return found


FALLING = (9.0, 8.0, 7.0, 6.0, 5.0, 4.0)


@pytest.fixture
def line() -> Line:
    line = Line(Told())
    apply(line, config(rest_every=2), **EAGER)
    return line


def test_a_prompt_that_changes_computes_first(line: Line) -> None:
    """Nothing is remembered under it: a step that should rest computes instead."""
    one, two = torch.ones(1, 3, 8), torch.ones(1, 3, 8) * 2
    line.begin(*FALLING)
    for step in range(6):
        line.step(step, one if step < 3 else two)
    assert ran(line) == {"merged": 4, "resting": 2}  # 0, 2, 3, 4 and 1, 5


def test_an_equal_prompt_is_the_same_one(line: Line) -> None:
    line.begin(*FALLING)
    for step in range(4):
        line.step(step, torch.ones(1, 3, 8))
    assert ran(line) == {"merged": 2, "resting": 2}
    written = torch.ones(1, 3, 8)
    line.begin(*FALLING)
    line.step(0, written)
    line.step(1, written.mul_(2))
    assert ran(line) == {"merged": 2}


def test_what_was_forgotten_is_computed(line: Line) -> None:
    prompt = torch.ones(1, 3, 8)
    line.begin(*FALLING)
    line.step(0, prompt)
    reset(line.unet)
    line.step(1, prompt)
    assert ran(line) == {"merged": 2}
    line.step(2, prompt)
    line.step(3, prompt)
    assert ran(line) == {"merged": 3, "resting": 1}


def test_pictures_that_take_turns_never_rest(line: Line) -> None:
    """After a call of another picture nobody knows whose memory it is."""
    other, prompt = Line(line.unet), torch.ones(1, 3, 8)
    apply(other, config(rest_every=2), **EAGER)
    line.begin(*FALLING)
    other.begin(*FALLING)
    for step in range(4):
        line.step(step, prompt)
        other.step(step, prompt, seed=1)
    assert "resting" not in ran(line)


def test_times_that_rise_rest_as_well(line: Line) -> None:
    """An inversion: every step that computes begins anew, and the next one goes on with it."""
    prompt, other = torch.ones(1, 3, 8), Line(Told())
    apply(other, config(rest_every=2), **EAGER)
    line.begin(*reversed(FALLING))
    found = [line.step(step, prompt) for step in range(4)]
    assert ran(line) == {"merged": 2, "resting": 2}
    other.begin(FALLING[3], FALLING[2])
    for number, step in enumerate((2, 3)):
        given = picture(seed=step), other.scheduler.timesteps[number]
        assert torch.equal(other.unet(*given, prompt=prompt), found[step])


def test_options_without_a_memory_are_refused() -> None:
    line, model = Line(Told()), Told()
    for name, value in {"rest_every": 2, "dense_steps": (0,)}.items():
        with pytest.raises(ConfigError, match=f'{name} needs a method that remembers .*"refresh"'):
            apply(line, TokenMergingConfig(**{name: value}))
        with pytest.raises(ConfigError, match=f"{name} needs a pipeline with a scheduler"):
            apply(model, config(**{name: value}))
        with pytest.raises(ConfigError, match="autotune"):
            apply(line, TokenMergingConfig(method="refresh", autotune=True, **{name: value}))
    for wrong in (1, 0, -2, 2.5, True, "2"):
        with pytest.raises(ConfigError, match="rest_every must be"):
            config(rest_every=wrong)
    for wrong in ((None,), 0.5, "0", (True,)):
        with pytest.raises(ConfigError, match="dense_steps must be"):
            config(dense_steps=wrong)
    assert config(dense_steps=3).dense_steps == (3,)
    assert config(dense_steps=[2, 0, -1, 2]).dense_steps == (-1, 0, 2)


def test_status_says_what_rests(line: Line) -> None:
    prompt = torch.ones(1, 3, 8)
    line.begin(*FALLING)
    for step in range(5):
        line.step(step, prompt)
    rows = {row.graph: (row.state, row.steps, row.reason) for row in status(line).graphs}
    assert rows == {"merged": ("merged", 3, ""), "resting": ("resting", 2, "")}
    assert "resting" in str(status(line))
    assert last_report().flops_after == 0
    assert "no token is computed" in last_report().remarks[-1]


def test_compiled_code_shares_the_memory(line: Line) -> None:
    """Three graphs write to the same tensors in place, and see what another one wrote."""
    other, prompt = Line(line.unet), torch.ones(1, 3, 8)
    how = {"rest_every": 3, "dense_steps": (0,)}
    found = []
    for inner in ("eager", "aot_eager"):
        enable(other, config(**how), options={"inner_backend": inner})
        other.begin(*FALLING)
        found.append([other.step(step, prompt) for step in range(6)])
        assert ran(other) == {"dense": 1, "merged": 3, "resting": 2}
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager, atol=1e-5, rtol=1e-5)
