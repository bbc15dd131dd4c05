"""A package makes the same picture whatever it made before, without a reset."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

import toma_fx
from tests.ahead.conftest import Built

LATENTS = {"sdxl": "sample", "flux": "hidden_states"}
PROMPTS, SEEDS, STEPS = (0, 1), (0, 1), (1, 2, 4)


def prompted(call: dict[str, Any], prompt: int) -> dict[str, Any]:
    """The call with another text: its first tokens differ, the rest is padding."""
    text = call["encoder_hidden_states"].clone()
    text[:, :2] = torch.randn(text[:, :2].shape, generator=torch.Generator().manual_seed(prompt))
    return {**call, "encoder_hidden_states": text}


def paint(
    package: toma_fx.LoadedModel,
    built: Built,
    latents: str,
    picture: tuple[int, int, int, bool],
    until: int,
) -> Iterator[Tensor]:
    """The latents after each step; with guidance each step calls twice."""
    prompt, seed, steps, guided = picture
    call = prompted(built.call, prompt)
    empty = prompted(built.call, 99)
    x = torch.randn(call[latents].shape, generator=torch.Generator().manual_seed(seed))
    for step in range(min(steps, until)):
        now = {"timestep": built.call["timestep"] * (1 - step / steps), latents: x}
        velocity = package(**{**call, **now})[0]
        if guided:
            other = package(**{**empty, **now})[0]
            velocity = other + 2 * (velocity - other)
        x = x - velocity / steps
        yield x


PICTURES = st.tuples(
    st.sampled_from(PROMPTS), st.sampled_from(SEEDS), st.sampled_from(STEPS), st.booleans()
)


@pytest.mark.parametrize("name", LATENTS)
def test_a_picture_of_a_package_depends_on_no_other(
    name: str, request: pytest.FixtureRequest
) -> None:
    built: Built = request.getfixturevalue(f"{name}_package")
    package = toma_fx.load(built.path)
    first: dict[tuple[int, int, int, bool], list[Tensor]] = {}

    @settings(
        deadline=None,
        max_examples=25,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(PICTURES, st.sampled_from((1, 2, 9, 9)))
    def check(picture: tuple[int, int, int, bool], until: int) -> None:
        if picture not in first:
            fresh = toma_fx.load(built.path)
            first[picture] = list(paint(fresh, built, LATENTS[name], picture, 9))
        found = paint(package, built, LATENTS[name], picture, until)
        for now, expected in zip(found, first[picture], strict=False):
            assert torch.equal(now, expected)

    check()
    assert package.stats().reuses > 10
    assert package.stats().misses["reset"] == 0
