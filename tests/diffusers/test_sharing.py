"""Pipelines that share a denoiser: time, guidance and steps follow the one that calls."""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import (
    FluxImg2ImgPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusionXLImg2ImgPipeline,
)

from tests.diffusers.door import EAGER, config, fresh, no_recompile, ran
from tests.pipelines import PIPES, Pipe
from toma_fx import PipelineError, PipelineWarning
from toma_fx.diffusers import apply, disable, enable, is_applied, remove, status

__all__ = ["fresh"]  # the fixture of these tests

IMAGES: dict[str, Any] = {
    "sdxl": (StableDiffusionXLImg2ImgPipeline, torch.zeros(1, 4, 32, 32)),
    "sd3": (StableDiffusion3Img2ImgPipeline, torch.zeros(1, 4, 32, 32)),
    "flux": (FluxImg2ImgPipeline, torch.zeros(1, 3, 64, 64)),
}
MERGED = {"sdxl": "merged in pairs", "sd3": "merged in pairs", "flux": "merged"}


@pytest.fixture(scope="module", params=PIPES)
def named(request: pytest.FixtureRequest) -> tuple[str, Pipe]:
    return request.param, PIPES[request.param]()


@pytest.fixture
def pair(named: tuple[str, Pipe]) -> Iterator[tuple[str, Pipe, Pipe]]:
    """A pipeline for text, and one for pictures that was made from it."""
    name, text = named
    yield name, text, image_pipe(name, text)
    disable(text.denoiser)


def image_pipe(name: str, text: Pipe) -> Pipe:
    pipeline = IMAGES[name][0].from_pipe(text.pipeline)
    pipeline.set_progress_bar_config(disable=True)
    return replace(text, pipeline=pipeline)


def draw(name: str, pipe: Pipe, steps: int = 8, **more: Any) -> torch.Tensor:
    """Half of the steps run; sizes are those of the picture."""
    prompts = pipe.prompts(0, 1)
    given = {"image": IMAGES[name][1], "strength": 0.5, "num_inference_steps": steps}
    generator = torch.Generator().manual_seed(0)
    sized = {"height": 64, "width": 64} if name != "sdxl" else {}
    arguments = {**prompts, **given, **sized, "output_type": "latent", **more}
    latents: torch.Tensor = pipe.pipeline(generator=generator, **arguments).images
    return latents


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs that are chosen, and run the plain model."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("given", ["text", "image", "both"])
def test_steps_and_guidance_follow_the_pipeline_that_calls(
    pair: tuple[str, Pipe, Pipe], given: str
) -> None:
    """Half of the steps that run are merged, whichever of the two `apply` was given."""
    name, text, image = pair
    chosen = {"text": [text], "image": [image], "both": [text, image]}[given]
    apply([pipe.pipeline for pipe in chosen], config(merge_steps=(0.0, 0.5)), **EAGER)
    paired, alone = MERGED[name], "merged"
    for _ in range(2):
        text.run(steps=4, guidance_scale=5.0)
        assert ran(text.pipeline) == {paired: 2, "plain": 2}
        draw(name, image, guidance_scale=1.0)
        assert ran(image.pipeline) == {alone: 2, "plain": 2}
        draw(name, image, guidance_scale=6.0)
        assert ran(image.pipeline) == {paired: 2, "plain": 2}
        text.run(steps=4, guidance_scale=1.0, batch=2)
        assert ran(text.pipeline) == {alone: 2, "plain": 2}


@pytest.mark.usefixtures("uncompiled")
def test_a_deleted_original_is_no_loss(named: tuple[str, Pipe]) -> None:
    name, text = named
    other = replace(text, pipeline=copy.copy(text.pipeline))
    image = image_pipe(name, text)
    image.pipeline.scheduler = copy.deepcopy(image.pipeline.scheduler)
    apply(other.pipeline, config(merge_steps=(0.0, 0.5)), **EAGER)
    other.run(steps=4, guidance_scale=5.0)
    del other
    gc.collect()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PipelineWarning)
        draw(name, image, guidance_scale=6.0)
    said = [entry for entry in caught if entry.category is PipelineWarning]
    if name == "flux":  # hands over copies of its timesteps, of a schedule that nobody knows
        assert len(said) == 1
        assert "Give apply that pipeline as well" in str(said[0].message)
    else:
        assert not said
        assert ran(image.pipeline) == {MERGED[name]: 2, "plain": 2}
    assert not is_applied(image.pipeline)
    apply(image.pipeline, config(merge_steps=(0.0, 0.5)), **EAGER)
    draw(name, image, guidance_scale=6.0)
    assert ran(image.pipeline) == {MERGED[name]: 2, "plain": 2}
    remove(image.pipeline)
    assert not status(text.pipeline).graphs


@pytest.mark.usefixtures("uncompiled")
def test_each_pipeline_has_its_own_configuration(pair: tuple[str, Pipe, Pipe]) -> None:
    name, text, image = pair
    apply(text.pipeline, config(ratio=0.25), **EAGER)
    assert is_applied(text.pipeline)
    assert not is_applied(image.pipeline)
    assert not is_applied([text.pipeline, image.pipeline])
    with pytest.raises(PipelineError, match="another pipeline that shares its denoiser"):
        remove(image.pipeline)
    apply(image.pipeline, config(merge_steps=(0.5, 1.0)), **EAGER)
    assert is_applied([text.pipeline, image.pipeline])
    text.run(steps=4)
    assert "plain" not in ran(text.pipeline)
    draw(name, image)
    assert ran(image.pipeline)["plain"] == 2
    remove(text.pipeline)
    assert not is_applied(text.pipeline)
    assert is_applied(image.pipeline)
    draw(name, image)
    assert ran(image.pipeline)["plain"] == 2
    remove(image.pipeline)
    assert "_compiled_call_impl" not in vars(text.denoiser)


@pytest.mark.usefixtures("uncompiled")
def test_a_pipeline_that_failed_before_its_first_step_does_not_confuse(
    pair: tuple[str, Pipe, Pipe],
) -> None:
    name, text, image = pair
    apply([text.pipeline, image.pipeline], config(merge_steps=(0.0, 0.5)), **EAGER)
    with pytest.raises(AttributeError):
        text.run(steps=4, generator="none", guidance_scale=1.0)
    draw(name, image, guidance_scale=6.0)
    assert ran(image.pipeline) == {MERGED[name]: 2, "plain": 2}


def test_pictures_made_in_turns_are_those_made_alone(pair: tuple[str, Pipe, Pipe]) -> None:
    """Bit for bit; nothing compiles that was compiled before."""
    name, text, image = pair
    apply(text.pipeline, config(), **EAGER)
    first = text.run(seed=1), draw(name, image)
    assert is_applied(text.pipeline)
    enable([text.pipeline, image.pipeline], config(), **EAGER)
    with no_recompile():
        for _ in range(2):
            assert torch.equal(draw(name, image), first[1])
            assert torch.equal(text.run(seed=1), first[0])
