"""The door for pipelines: pictures of an explicit compile, no recompiles, nothing left behind."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from tests.diffusers.door import EAGER, SMALL, compiles, config, fresh, no_recompile
from tests.models import sdxl, sdxl_inputs
from tests.pipelines import PIPES, Pipe
from toma_fx import TomaConfig, last_report, reset, reuse_stats
from toma_fx.diffusers import apply, disable, enable, is_applied, remove
from toma_fx.diffusers.progress import Progress

__all__ = ["fresh"]  # the fixture of these tests


@pytest.fixture(scope="module", params=PIPES)
def made(request: pytest.FixtureRequest) -> Pipe:
    return PIPES[request.param]()


@pytest.fixture
def pipe(made: Pipe) -> Iterator[Pipe]:
    yield made
    disable(made.pipeline)


def explicit(pipe: Pipe, *calls: dict[str, Any], **options: Any) -> list[torch.Tensor]:
    """The pictures of `torch.compile` by hand, with `reset` before each."""
    model = pipe.denoiser
    given = {**SMALL, "inner_backend": "eager", "cfg_pairs": pipe.negative, **options}
    setattr(pipe.pipeline, pipe.component, torch.compile(model, backend="toma", options=given))
    try:
        found = []
        for call in calls:
            reset(model)
            found.append(pipe.run(**call))
        return found
    finally:
        setattr(pipe.pipeline, pipe.component, model)


CALLS: tuple[dict[str, Any], ...] = ({"prompt": 1, "seed": 1}, {"prompt": 2, "seed": 2, "steps": 5})


def test_the_pictures_are_those_of_an_explicit_compile(pipe: Pipe) -> None:
    """Twice, with all that may change between; only another size compiles anew."""
    plain = pipe.run(**CALLS[0])
    expected = explicit(pipe, *CALLS)
    torch._dynamo.reset()
    apply(pipe.pipeline, config(), fullgraph=True, **EAGER)
    before = compiles()
    assert torch.equal(pipe.run(**CALLS[0]), expected[0])
    assert last_report().merged
    assert not torch.allclose(expected[0], plain)
    with no_recompile():
        pipe.run(prompt=7, seed=8, steps=4, guidance_scale=3.0)
        for call, picture in zip(CALLS, expected, strict=True):
            assert torch.equal(pipe.run(**call), picture)
        _fails_half_way(pipe)
        assert torch.equal(pipe.run(**CALLS[0]), expected[0])
    assert compiles() == before + 1
    assert reuse_stats(pipe.denoiser).misses["new_generation"] == 0
    pipe.run(steps=1, batch=2, side=(64, 96))
    assert compiles() == before + 2


def _fails_half_way(pipe: Pipe) -> None:
    def fail(*_: Any) -> dict[str, Any]:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        pipe.run(prompt=5, seed=5, callback_on_step_end=fail)


@pytest.fixture(scope="module")
def made_flux() -> Pipe:
    return PIPES["flux"]()


@pytest.fixture
def flux(made_flux: Pipe) -> Iterator[Pipe]:
    yield made_flux
    disable(made_flux.pipeline)


def test_steps_outside_of_the_range_run_plain(flux: Pipe) -> None:
    apply(flux.pipeline, config(merge_steps=(0.5, 1.0)), **EAGER)
    early = flux.run(steps=4, callback_on_step_end=_kept(kept := []))
    assert reuse_stats(flux.denoiser).steps == 2
    with no_recompile():
        assert torch.equal(flux.run(steps=4), early)
    remove(flux.pipeline)
    flux.run(steps=4, callback_on_step_end=_kept(dense := []))
    same = [torch.allclose(a, b, atol=1e-5) for a, b in zip(kept, dense, strict=True)]
    assert same == [True, True, False, False]


def _kept(latents: list[torch.Tensor]) -> Any:
    def keep(_: Any, __: int, ___: Any, values: dict[str, Any]) -> dict[str, Any]:
        latents.append(values["latents"].clone())
        return values

    return keep


def test_remove_restores_everything(flux: Pipe) -> None:
    model, plain = flux.denoiser, flux.run()
    before, members = set(vars(model)), set(vars(flux.pipeline))
    apply(flux.pipeline, config(), **EAGER)
    assert flux.denoiser is model
    assert flux.pipeline.components["transformer"] is model
    assert not torch.equal(flux.run(), plain)
    assert not is_applied(copy.deepcopy(model))
    remove(flux.pipeline)
    assert set(vars(model)) == before
    assert set(vars(flux.pipeline)) == members
    assert torch.equal(flux.run(), plain)


def test_enable_replaces_and_disable_repeats(flux: Pipe) -> None:
    enable(flux.pipeline, config(ratio=0.25), **EAGER)
    enable(flux.pipeline, config(ratio=0.5), **EAGER)
    assert is_applied(flux.pipeline)
    disable(disable(flux.pipeline))
    assert not is_applied(flux.pipeline)


@pytest.mark.parametrize(
    ("given", "call", "paired"),
    [
        (None, {"guidance_scale": 5.0}, True),
        (None, {"guidance_scale": 1.0, "batch": 2}, None),
        (False, {"guidance_scale": 5.0}, False),
        (True, {"guidance_scale": 5.0}, True),
    ],
)
def test_guidance_is_read_at_each_call(
    monkeypatch: pytest.MonkeyPatch, given: bool | None, call: dict[str, Any], paired: bool | None
) -> None:
    pipe, found = PIPES["sdxl"](), []

    def uncompiled(forward: Any, backend: Any, **_: Any) -> Any:
        found.append(backend.args[1].cfg_pairs)
        return forward

    monkeypatch.setattr(torch, "compile", uncompiled)
    apply(pipe.pipeline, config(cfg_pairs=given), **EAGER)
    pipe.run(steps=2, **call)
    assert found == [paired]


def test_true_guidance_of_flux_calls_twice_a_step(flux: Pipe) -> None:
    apply(flux.pipeline, config(), **EAGER)
    before = reuse_stats(flux.denoiser).steps
    negative = {
        "negative_prompt_embeds": torch.randn(1, 20, 64),
        "negative_pooled_prompt_embeds": torch.randn(1, 32),
        "true_cfg_scale": 3.0,
    }
    flux.run(steps=4, **negative)
    assert reuse_stats(flux.denoiser).steps == before + 4


def test_schedulers_without_an_index_are_followed_by_their_timesteps() -> None:
    class Pipeline:
        scheduler = DDIMScheduler()

    pipeline = Pipeline()
    progress = Progress()
    progress.add(pipeline)
    assert not hasattr(pipeline.scheduler, "step_index")
    for steps in (4, 5):
        pipeline.scheduler.set_timesteps(steps)
        found: list[float | None] = []
        for timestep in pipeline.scheduler.timesteps:
            moment = progress.follow(timestep)
            assert moment.begins == (not found)
            found.append(moment.share)
            other = progress.follow(timestep)  # the other half of guidance
            assert not other.begins
            assert other.share == found[-1]
        assert found == [step / steps for step in range(steps)]


def test_a_model_of_its_own() -> None:
    model = sdxl()
    inputs = sdxl_inputs(model, 16, 16)
    with torch.no_grad():
        plain = model(**inputs)[0]
        assert apply(model, TomaConfig(**SMALL), **EAGER) is model
        assert not torch.equal(model(**inputs)[0], plain)
        assert torch.equal(remove(model)(**inputs)[0], plain)


def test_skip_blocks_leaves_the_first_of_each_class(flux: Pipe) -> None:
    apply(flux.pipeline, config(skip_blocks=1), **EAGER)
    flux.run(steps=1)
    skipped = {r.module_path.split(".")[0] for r in last_report().regions if "skip_b" in r.reason}
    merged = {".".join(r.module_path.split(".")[:2]) for r in last_report().merged}
    assert skipped == {"transformer_blocks", "single_transformer_blocks"}
    assert merged == {"single_transformer_blocks.1"}
