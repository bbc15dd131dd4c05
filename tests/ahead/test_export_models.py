"""Packages of SDXL- and Flux-shaped models beside `torch.compile(backend="toma")`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import toma_fx
from tests.ahead.conftest import Built
from tests.ahead.small import Small, relative, small_call

Jitted = Callable[[nn.Module], Callable[..., Any]]


def steps(call: dict[str, Any], latents: str, pictures: int = 2, count: int = 10) -> Any:
    """Calls of whole pictures: other noise at each step, a timestep that falls."""
    for picture in range(pictures):
        for step in range(count):
            generator = torch.Generator().manual_seed(100 * picture + step)
            noise = torch.randn(call[latents].shape, generator=generator)
            left = call["timestep"] * (1 - step / count)
            yield {**call, latents: noise, "timestep": left}


@pytest.mark.parametrize(("name", "latents"), [("sdxl", "sample"), ("flux", "hidden_states")])
def test_a_package_computes_what_the_jitted_model_computes(
    name: str, latents: str, request: pytest.FixtureRequest, jitted: Jitted
) -> None:
    """Two pictures of ten steps, selected and reused at the same steps."""
    built: Built = request.getfixturevalue(f"{name}_package")
    package, compiled = toma_fx.load(built.path), jitted(built.model)
    before = toma_fx.reuse_stats(built.model)
    assert before.steps == 0
    with torch.no_grad():
        for call in steps(built.call, latents):
            result, expected = package(**call)[0], compiled(**call)[0]
            assert relative(result, expected) < 1e-4
            assert relative(result, built.model(**call)[0]) > 1e-2  # something was merged
    assert package.stats() == toma_fx.reuse_stats(built.model)
    assert (package.stats().selections, package.stats().reuses) == (6, 10)
    assert package.stats().misses["new_generation"] == 1


def test_an_sdxl_package_takes_the_calls_of_a_pipeline(sdxl_package: Built) -> None:
    """The latents and the timestep by place, and arguments that are None."""
    call, package = sdxl_package.call, toma_fx.load(sdxl_package.path)
    expected = package(**call)[0]
    package.reset()
    result = package(
        call["sample"],
        call["timestep"],
        encoder_hidden_states=call["encoder_hidden_states"],
        timestep_cond=None,
        cross_attention_kwargs=None,
        added_cond_kwargs=dict(reversed(call["added_cond_kwargs"].items())),
        return_dict=False,
    )[0]
    assert torch.equal(result, expected)


def test_metadata_says_what_is_inside(flux_package: Built) -> None:
    about = toma_fx.load(flux_package.path).metadata
    assert about["model"].endswith("FluxTransformer2DModel")
    assert (about["ratio"], about["config"]["window"], about["device"]) == (0.5, 4, "cpu")
    assert about["versions"]["torch"] == torch.__version__.partition("+")[0]
    (entry,) = about["entries"]
    shapes = {leaf["path"]: leaf["shape"] for leaf in entry["inputs"]}
    assert shapes["hidden_states"] == [1, 64, 16]
    assert shapes["return_dict"] is None
    assert sum(region["status"] == "merged" for region in entry["report"]["regions"]) == 3


def test_weights_keep_their_names(small_package: Built) -> None:
    loader = torch._inductor.aoti_load_package(str(small_package.path))
    names = {name for name, _ in Small().named_parameters()}
    assert names <= set(loader.get_constant_fqns())


def test_plans_are_kept_reused_and_forgotten(
    small: toma_fx.LoadedModel, small_package: Built, jitted: Jitted
) -> None:
    """Bit by bit the same picture again, though plans were reused; another after a reset."""
    compiled = jitted(small_package.model)
    first = [small(**small_call(step=step))["noise"] for step in range(6)]
    again = [small(**small_call(step=step))["noise"] for step in range(6)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert (small.stats().selections, small.stats().reuses) == (4, 6)
    small.reset()
    renewed = small(**small_call(step=7))["noise"]
    assert small.stats().misses["reset"] == 1
    with torch.no_grad():
        assert relative(renewed, compiled(**small_call(step=7))["noise"]) < 1e-4
    assert not torch.equal(renewed, toma_fx.load(small_package.path)(**small_call())["noise"])


def test_each_resolution_has_plans_of_its_own(
    small: toma_fx.LoadedModel, small_package: Built, jitted: Jitted
) -> None:
    compiled = jitted(small_package.model)
    for step in range(3):
        for width in (8, 12):
            call = small_call(8, width, step)
            with torch.no_grad():
                assert relative(small(**call)["noise"], compiled(**call)["noise"]) < 1e-4
    stats = small.stats()
    assert (stats.groups, stats.steps, stats.selections, stats.reuses) == (2, 6, 2, 2)


def test_strides_of_a_call_do_not_matter(small: toma_fx.LoadedModel) -> None:
    call = small_call()
    expected = small(**call)["noise"]
    small.reset()
    call["sample"] = call["sample"].to(memory_format=torch.channels_last)
    assert torch.equal(small(**call)["noise"], expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_package_on_cuda(tmp_path: Any) -> None:
    model = Small().cuda()
    call = {name: value.cuda() for name, value in small_call().items()}
    from tests.ahead.small import CONFIG

    path = toma_fx.export(model, (), call, path=tmp_path / "small.pt2", config=CONFIG)
    package = toma_fx.load(path)
    for step in range(10):
        given = {name: value.cuda() for name, value in small_call(step=step).items()}
        assert torch.isfinite(package(**given)["noise"]).all()
    assert (package.stats().selections, package.stats().reuses) == (3, 5)
