"""Whole models that remember, two pictures of ten steps, against blocks that do so by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.eager_refresh import remembered_by_hand
from tests.models import flux_inputs
from tests.remembering import (
    STEPS,
    Subject,
    by_hand,
    flux_subject,
    pictures,
    sdxl_subject,
    small_flux,
    worst,
)
from tests.test_compatibility import lora

ALL = list(pictures())


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.no_grad():
        yield


@cache
def subject(name: str, batch: int) -> Subject:
    make = {"sdxl": sdxl_subject, "flux": flux_subject}[name]
    return make(batch=batch)


@cache
def wanted(name: str, batch: int, settings: tuple[tuple[str, Any], ...]) -> list[Tensor]:
    one = subject(name, batch)
    return by_hand(one, one.by_hand(**dict(settings)), ALL)


GIVEN, LINEAR = {"trend": 0.5}, {"extrapolate": 0.5}
BLOCKS, RUNS = "merged once a block: {} blocks", "merged once a span: 4 spans over 8 blocks"
COMPUTED = {"keys": "computed", "scope": "block"}
# Model, batch, what the hand does, options, how often it merges.
CASES = [
    # Keys of computed tokens and a given trend: a memory for a region, a block or a run of blocks
    # is all the same, as long as no gate that the timestep moves lies in it: those are behind a
    # region's memory.
    ("sdxl", 2, GIVEN, {"scope": "region", **LINEAR}, []),
    ("sdxl", 2, GIVEN, {"scope": "block", **LINEAR}, [BLOCKS.format(8)]),
    ("sdxl", 2, GIVEN, LINEAR, [RUNS]),
    ("sdxl", 1, {"keys": "all", **GIVEN}, {"scope": "region", **LINEAR}, []),
    ("sdxl", 1, {"keys": "all", **GIVEN}, LINEAR, [BLOCKS.format(8)]),
    # A trend that is fitted is that of what a memory holds.
    ("sdxl", 2, {}, {"scope": "region"}, []),
    ("sdxl", 2, {"scope": "block"}, {"scope": "block"}, [BLOCKS.format(8)]),
    ("sdxl", 2, {"scope": "span"}, {}, [RUNS]),
    ("sdxl", 1, {"keys": "all", "scope": "block"}, {}, [BLOCKS.format(8)]),
    ("sdxl", 1, {"ratio": 0.75, "history": 1}, {}, [RUNS]),
    ("flux", 2, {"keys": "all", "scope": "region"}, {"keys": "auto"}, []),
    (
        "flux",
        1,
        {"keys": "all", "scope": "block"},
        {"keys": "auto", "scope": "block"},
        [BLOCKS.format(3)],
    ),
    ("flux", 1, {"keys": "computed"}, {}, []),
    ("flux", 1, {**COMPUTED, "ratio": 1 / 3}, {"scope": "block"}, [BLOCKS.format(3)]),
]


@pytest.mark.parametrize(("name", "batch", "settings", "options", "remarks"), CASES)
def test_equals_blocks_that_remember_by_hand(
    name: str, batch: int, settings: dict[str, Any], options: dict[str, Any], remarks: list[str]
) -> None:
    names = ("keys", "ratio", "history")
    same = {key: value for key, value in settings.items() if key in names}
    one = subject(name, batch)
    run = one.rewritten(**{**same, **options})
    assert run.report.remarks == remarks
    assert {region.reason for region in run.report.merged} == {""}
    found = [run(**one.call(step, picture)) for picture, step in ALL]
    hand = wanted(name, batch, tuple(settings.items()))
    assert worst(found, hand) < 1e-4
    plain = [one.model(**one.call(step, picture))[0] for picture, step in ALL[:2]]
    assert worst(found[:2], plain) > 1e-3  # tokens were left out


def test_sequential_guidance_remembers_each_half() -> None:
    """Two calls a step, one timestep, two prompts: neither sees what the other remembers."""
    one = subject("sdxl", 1)
    run = one.rewritten()
    prompts = [torch.randn_like(one.inputs["encoder_hidden_states"]) for _ in range(2)]
    hands = [one.by_hand(scope="span"), one.by_hand(scope="span")]
    for picture, step in ALL:
        for prompt, how in zip(prompts, hands, strict=True):
            call = one.call(step, picture, encoder_hidden_states=prompt)
            with remembered_by_hand(one.model, how) as hand:
                if step == 0:
                    how.begin()
                expected = hand(**call)[0]
            assert worst([run(**call)], [expected]) < 1e-4


def test_a_picture_does_not_depend_on_the_one_before() -> None:
    one = subject("flux", 1)
    run, other = one.rewritten(), one.rewritten()
    first = [run(**one.call(step, 7)) for step in range(STEPS)]
    for step in range(3):  # a picture that is given up
        other(**one.call(step, 5))
    again = [other(**one.call(step, 7)) for step in range(STEPS)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_what_is_not_a_number_does_not_outlive_its_picture() -> None:
    one = subject("flux", 1)
    run, other = one.rewritten(slots=1), one.rewritten(slots=1)
    spoilt = one.call(0, 5)
    for step in range(3):
        noise = torch.full_like(spoilt[one.latents], float("nan"))
        assert run(**one.call(step, 5, **{one.latents: noise})).isnan().all()
    found = [run(**one.call(step, 6)) for step in range(4)]
    expected = [other(**one.call(step, 6)) for step in range(4)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


class EightBits(nn.Module):
    """A linear whose weights are whole numbers, each row with a scale."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("weight", (linear.weight.detach() / scale).round().to(torch.int8))
        self.bias = linear.bias

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.weight.to(hidden.dtype) * self.scale, self.bias)


def in_eight_bits(model: nn.Module) -> None:
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and "transformer_blocks" in path:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, EightBits(module))


@pytest.mark.parametrize("change", [lora, in_eight_bits])
def test_adapters_and_quantised_linears_remember(change: Callable[[nn.Module], Any]) -> None:
    model: Any = small_flux(num_single_layers=1)
    change(model)
    one = Subject(model, flux_inputs(model, 6, 5, text=5), "hidden_states", (6, 5))
    run, calls = one.rewritten(), ALL[:4]
    assert run.report.remarks == []
    found = [run(**one.call(step, picture)) for picture, step in calls]
    assert worst(found, by_hand(one, one.by_hand(keys="all"), calls)) < 1e-4
