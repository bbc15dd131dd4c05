"""Which inputs the guard reads: timestep, latents and conditioning, by what they do."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from tests.helpers import predict
from tests.models import flux, flux_inputs, sdxl, sdxl_inputs
from toma_fx import TomaConfig
from toma_fx.passes.find.find import find
from toma_fx.passes.layouts.analysis import Analysis
from toma_fx.passes.normalize.normalize import normalize
from toma_fx.passes.plan.plan import plan
from toma_fx.passes.rewrite.guard_inputs import GuardInputs, find_guard_inputs, input_name


@dataclass
class Found:
    """What the guard would read, by the names of the arguments."""

    timestep: str | None
    latents: set[str]
    conditioning: set[str]
    tables: set[str]
    note: str


def analyse(model: nn.Module, *args: Any, **kwargs: Any) -> Analysis:
    """The normalised graph of a call, traced once; the passes only read it."""
    found: list[Analysis] = []

    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        found.append(Analysis(normalize(gm, inputs)))
        return gm.forward

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(model, backend=backend, fullgraph=True)(*args, **kwargs)
    assert len(found) == 1
    return found[0]


def guard_inputs(analysis: Analysis, **options: Any) -> Found:
    """The only place that knows how the pass is called."""
    config = TomaConfig(**{"regions": "all", "min_tokens": 16, "window": 4, **options})
    groups = plan(find(analysis, config.grid), config, predict)
    assert groups, "nothing is merged: there is nothing to guard"
    found = find_guard_inputs(analysis, groups, config)
    assert isinstance(found, GuardInputs)
    placeholders = set(analysis.graph.find_nodes(op="placeholder"))
    parts = (*found.latents, *found.conditioning, *found.tables)
    assert set(parts) <= placeholders
    assert len(set(parts)) == len(parts)
    return Found(
        None if found.timestep is None else input_name(found.timestep),
        {input_name(node) for node in found.latents},
        {input_name(node) for node in found.conditioning},
        {input_name(node) for node in found.tables},
        found.note,
    )


@pytest.fixture(scope="module")
def of_sdxl() -> Analysis:
    model = sdxl()
    return analyse(model, **sdxl_inputs(model, 16, 16))


@pytest.fixture(scope="module")
def of_flux() -> Analysis:
    model = flux(num_layers=1, num_single_layers=1)
    return analyse(model, **flux_inputs(model, 8, 8))


@pytest.fixture(scope="module")
def of_positional_flux() -> Analysis:
    """`transformer(hidden_states, text, pooled, timestep, img_ids, txt_ids, guidance)`."""
    model = flux(num_layers=1, num_single_layers=0)
    given = flux_inputs(model, 8, 8)
    given.pop("return_dict")
    return analyse(model, *given.values())


def test_sdxl_is_timed_by_its_timestep_and_not_by_its_time_ids(of_sdxl: Analysis) -> None:
    found = guard_inputs(of_sdxl)
    assert (found.timestep, found.note) == ("timestep", "")
    assert found.latents == {"sample"}
    assert found.conditioning == {"encoder_hidden_states", "text_embeds", "time_ids"}


def test_flux_is_timed_by_its_timestep_and_not_by_its_guidance(of_flux: Analysis) -> None:
    found = guard_inputs(of_flux)
    assert (found.timestep, found.note) == ("timestep", "")
    assert found.latents == {"hidden_states"}
    assert found.conditioning == {"encoder_hidden_states", "pooled_projections", "guidance"}
    # Positions of the picture are neither: the grid is guarded by itself.
    assert found.tables == {"txt_ids"}


def test_half_precision_flux_is_timed_alike() -> None:
    """Its timestep passes through casts before and after the embedding."""
    model = flux(num_layers=1, num_single_layers=0).to(torch.bfloat16)
    found = guard_inputs(analyse(model, **flux_inputs(model, 8, 8)))
    assert found.timestep == "timestep"
    assert found.latents == {"hidden_states"}


def test_another_input_can_be_named(of_flux: Analysis) -> None:
    assert guard_inputs(of_flux, timestep_input="guidance").timestep == "guidance"
    found = guard_inputs(of_flux, timestep_input="timestep")
    assert (found.timestep, found.note) == ("timestep", "")


def test_an_unknown_name_is_no_timestep(of_flux: Analysis) -> None:
    found = guard_inputs(of_flux, timestep_input="time_step")
    assert found.timestep is None
    said, _, known = found.note.removesuffix("): every call selects anew").partition(" (")
    assert said == "timestep_input='time_step' is no input"
    assert {"hidden_states", "timestep", "guidance"} <= set(known.split(", "))


class Sinusoid(nn.Module):
    """Sines and cosines of a number, and a linear that reads them."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.linear = nn.Linear(8, width)

    def forward(self, number: Tensor) -> Tensor:
        angle = number.reshape(-1, 1).float() * torch.arange(1, 5)
        return self.linear(torch.cat((angle.sin(), angle.cos()), -1))


class Model(nn.Module):
    """Two feed-forwards over a picture `[B, 4, H, W]`, modulated by `embed(model, …)`."""

    def __init__(self, embed: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = embed
        self.one, self.two = Sinusoid(), Sinusoid()
        self.table, self.words = nn.Embedding(1000, 16), nn.Linear(6, 16)
        self.lift, self.lower = nn.Linear(4, 16), nn.Linear(16, 4)
        self.norm, self.widen, self.narrow = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, picture: Tensor, *numbers: Any, **named: Any) -> Tensor:
        x = self.lift(picture.flatten(2).transpose(1, 2))
        shift = self.embed(self, *numbers, **named).reshape(-1, 1, 16)
        for _ in range(2):
            x = x + self.narrow(nn.functional.gelu(self.widen(self.norm(x) * (1 + shift) + shift)))
        return self.lower(x).transpose(1, 2).reshape(picture.shape)


def found_in(embed: Callable[..., Tensor], *args: Any, **named: Any) -> Found:
    picture = torch.randn(1, 4, 8, 8)
    return guard_inputs(analyse(Model(embed), picture, *args, **named))


def number() -> Tensor:
    """A tensor of its own: Dynamo takes one object given twice for one input."""
    return torch.tensor([5.0])


@dataclass
class Case:
    """An embedding, its named inputs, and which of them is the timestep."""

    embed: Callable[..., Tensor]
    timestep: str | None
    inputs: dict[str, Tensor] = field(default_factory=dict)


CASES = {
    "one clock of any name": Case(lambda m, sigma: m.one(sigma), "sigma", {"sigma": number()}),
    "a scalar": Case(lambda m, timestep: m.one(timestep), "timestep", {"timestep": number()[0]}),
    "a whole number": Case(
        lambda m, timestep: m.one(timestep), "timestep", {"timestep": torch.tensor(5)}
    ),
    "a flow that runs backwards": Case(
        lambda m, t: m.one((1 - t) * 1000), "t", {"t": torch.tensor([0.5])}
    ),
    "a logarithm": Case(lambda m, sigma: m.one(sigma.log() / 4), "sigma", {"sigma": number()}),
    "two clocks, one with a name that says so": Case(
        lambda m, guidance, timestep: m.one(guidance) + m.two(timestep),
        "timestep",
        {"guidance": number(), "timestep": number()},
    ),
    "two clocks, one called t": Case(
        lambda m, fps, t: m.one(fps) + m.two(t), "t", {"fps": number(), "t": number()}
    ),
    "two clocks without such a name": Case(
        lambda m, sigma, fps: m.one(sigma) + m.two(fps), None, {"sigma": number(), "fps": number()}
    ),
    "two clocks with such names": Case(
        lambda m, timestep, timestep_r: m.one(timestep) + m.two(timestep_r),
        None,
        {"timestep": number(), "timestep_r": number()},
    ),
    "one sinusoid of two numbers": Case(
        lambda m, sigma, fps: m.one(sigma * fps), None, {"sigma": number(), "fps": number()}
    ),
    "a learned table": Case(
        lambda m, timestep: m.table(timestep), None, {"timestep": torch.tensor([5])}
    ),
    # Were guidance the timestep, a picture with less of it would go on with the last plan.
    "a learned table beside a clock": Case(
        lambda m, timestep, guidance: m.table(timestep) + m.one(guidance),
        None,
        {"timestep": torch.tensor([5]), "guidance": number()},
    ),
    "sizes, several for each item": Case(
        lambda m, time_ids: m.one(time_ids).mean(0), None, {"time_ids": torch.ones(1, 6)}
    ),
    "sines that nothing learned reads": Case(
        lambda m, timestep: timestep.sin().reshape(1, 1) * m.lift.weight[:, :1].T,
        None,
        {"timestep": number()},
    ),
    "no input at all": Case(lambda m: m.lift.bias, None),
}


@pytest.mark.parametrize("name", list(CASES))
def test_the_timestep_is_what_feeds_a_sinusoidal_embedding(name: str) -> None:
    case = CASES[name]
    found = found_in(case.embed, **case.inputs)
    assert found.timestep == case.timestep
    assert found.latents == {"picture"}
    if case.timestep is None:
        note = "no single timestep input in the graph: every call selects anew"
        assert found.note.startswith(note)
        clocks = name.startswith("two clocks")
        assert ("timestep_input" in found.note) == clocks
        assert not clocks or all(clock in found.note for clock in case.inputs)
    else:
        assert found.note == ""
        assert case.timestep not in found.conditioning


def test_a_positional_timestep_is_found() -> None:
    found = found_in(lambda m, t, words: m.one(t) + m.words(words), number(), torch.ones(1, 6))
    assert found.timestep is not None
    assert found.note == ""
    assert (len(found.latents), len(found.conditioning)) == (1, 1)


def test_a_positional_timestep_beside_another_clock_is_named_by_its_place(
    of_positional_flux: Analysis,
) -> None:
    """Behind `*args` an argument has no name of its own; the note says what to call it."""
    unnamed = guard_inputs(of_positional_flux)
    assert unnamed.timestep is None
    places = re.findall(r"args\[\d\]", unnamed.note)
    assert len(places) == 2
    assert guard_inputs(of_positional_flux, timestep_input=places[0]).timestep == places[0]


def test_inputs_that_only_mask_or_place_are_not_conditioning() -> None:
    """What passes through arithmetic alone is no feature; what feeds a linear is."""

    def embed(model: Model, t: Tensor, gain: Tensor, words: Tensor) -> Tensor:
        return model.one(t) * gain + model.words(words)

    found = found_in(embed, t=number(), gain=torch.ones(1, 16), words=torch.ones(1, 6))
    assert found.timestep == "t"
    assert found.conditioning == {"words"}
    assert found.tables == {"gain"}


def test_a_second_picture_is_compared_with_the_latents() -> None:
    """Residuals and control pictures: another one under a repeated timestep is another call."""

    def embed(model: Model, t: Tensor, control: Tensor) -> Tensor:
        return model.one(t) + model.lift(control.mean((2, 3)))

    found = found_in(embed, t=number(), control=torch.ones(1, 4, 8, 8))
    assert found.latents == {"picture", "control"}
    assert found.conditioning == set()


def test_residuals_of_a_control_network_change_with_every_step() -> None:
    """They are added to the stream as they are; a text of the same shape is projected first."""
    model = flux(num_layers=1, num_single_layers=0)
    given = flux_inputs(model, 8, 8, text=64)
    residuals = torch.randn(1, 64, 64)
    found = guard_inputs(analyse(model, **given, controlnet_block_samples=[residuals]))
    (control,) = found.latents - {"hidden_states"}
    assert "encoder_hidden_states" in found.conditioning
    assert "controlnet_block_samples" in control
    scaled = 0.5 * residuals
    assert guard_inputs(analyse(Scaled(model), scaled, **given)).latents == {
        "hidden_states",
        "residuals",
    }


class Scaled(nn.Module):
    """A model that weighs its control network."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, residuals: Tensor, **given: Any) -> Any:
        return self.model(**given, controlnet_block_samples=[(residuals * 0.3).float()])


def test_a_second_time_changes_with_every_step() -> None:
    def embed(model: Model, timestep: Tensor, time_next: Tensor, scale: Tensor) -> Tensor:
        return model.one(timestep) + model.two(time_next) + model.one(scale)

    analysis = analyse(
        Model(embed), torch.randn(1, 4, 8, 8), timestep=number(), time_next=number(), scale=number()
    )
    found = guard_inputs(analysis, timestep_input="timestep")
    assert found.latents == {"picture", "time_next"}
    assert found.conditioning == {"scale"}


def test_slots_are_kept_where_there_is_something_to_tell_apart() -> None:
    node = fx.Graph().placeholder("t")
    bare, full = GuardInputs(node), GuardInputs(node, tables=(node,))
    config = TomaConfig(slots=3)
    assert [one.slots(config) for one in (GuardInputs(None), bare, full)] == [1, 1, 3]
    assert full.slots(TomaConfig(slots=3, guard=("timestep",))) == 1


@dataclass
class Numbers:
    """Inputs that a model takes as one object."""

    sigma: Tensor
    fps: Tensor


def test_a_timestep_inside_an_object_can_be_named() -> None:
    def embed(model: Model, numbers: Numbers) -> Tensor:
        return model.one(numbers.sigma) + model.two(numbers.fps)

    analysis = analyse(
        Model(embed), torch.randn(1, 4, 8, 8), numbers=Numbers(number(), number() + 1)
    )
    assert guard_inputs(analysis, timestep_input="sigma").timestep == "sigma"
