"""Streams, failures, resets and odd timesteps: whose plan a call uses, and when none is left."""

from __future__ import annotations

import dataclasses
import gc
import math
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import toma_fx
from tests.models import flux, flux_inputs, positions, sdxl, sdxl_inputs
from tests.tiny import (
    OPTIONS,
    SHAPES,
    WINDOW,
    Oracle,
    Tiny,
    Tripwire,
    assert_adds_up,
    compiled,
    failing,
    generation,
    inputs,
    one_thread,
    same,
    seeded,
)
from toma_fx import ReuseStats, TomaConfig, last_report, reuse_stats

__all__ = ["one_thread"]  # the fixture of these tests


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
@pytest.mark.parametrize("before", [0, 1, 3])
def test_a_failed_step_leaves_no_plan(inner: str, before: int) -> None:
    """The guard has moved on when the call fails; the plan was never made."""
    model = Tiny()
    run = compiled(model, inner_backend=inner)
    calls = generation(range(9, 0, -1))
    run(*calls[0])
    toma_fx.reset(model)
    for call in calls[:before]:
        run(*call)
    with failing():
        run(*calls[before])
    for retried in (calls[before + 1], calls[before + 2]):
        oracle = Oracle(model)
        if retried is calls[before + 2]:
            oracle(*calls[before + 1])
        assert same(run(*retried), oracle(*retried))


def test_an_interrupt_is_a_failure_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Tiny()
    run = compiled(model)
    calls = generation(range(9, 0, -1))
    run(*calls[0])
    monkeypatch.setattr(Tripwire, "error", KeyboardInterrupt)
    monkeypatch.setattr(Tripwire, "armed", True)
    with pytest.raises(KeyboardInterrupt):
        run(*calls[1])
    monkeypatch.undo()
    assert same(run(*calls[2]), Oracle(model)(*calls[2]))
    assert reuse_stats(model).misses["reset"] == 1


def test_reset_forgets_and_keeps_the_statistics() -> None:
    model = Tiny()
    toma_fx.reset(model)  # never compiled: nothing to forget
    assert reuse_stats(model) == ReuseStats()
    run = compiled(model)
    calls = generation(range(9, 0, -1))
    for call in calls[:3]:
        run(*call)
    toma_fx.reset(model)
    assert same(run(*calls[3]), Oracle(model)(*calls[3]))
    stats = reuse_stats(model)
    assert (stats.misses["cold"], stats.misses["reset"], stats.reuses) == (1, 1, 2)
    other = Tiny(1)
    toma_fx.reset(other)
    run(*calls[4])
    assert reuse_stats(model).selections == 2  # another model's reset is not ours


def test_streams_interleave_as_if_each_were_alone() -> None:
    model = Tiny()
    options = {"select_every": 4, "weigh_every": 2}
    pictures = [generation(range(9, 0, -1), picture, picture) for picture in range(2)]
    alone = []
    for calls in pictures:
        run = compiled(model, **options)
        alone.append([run(*call) for call in calls])
    run = compiled(model, **options)
    gc.collect()  # graphs of the compiles before
    for step in range(9):
        for picture, calls in enumerate(pictures):
            with toma_fx.stream(model, f"picture {picture}"):
                result = run(*calls[step])
            assert torch.equal(result, alone[picture][step])
    stats = reuse_stats(model)
    assert (stats.steps, stats.selections, stats.weighings, stats.reuses) == (18, 6, 10, 8)
    assert_adds_up(stats, 18)


def test_a_step_that_fails_leaves_other_streams_alone() -> None:
    model = Tiny()
    run, oracle = compiled(model), Oracle(model)
    calls = generation(range(9, 0, -1))
    for call in calls[:2]:
        for name in ("a", "b"):
            with toma_fx.stream(model, name):
                assert same(run(*call), oracle(*call, stream=name))
    with toma_fx.stream(model, "b"), failing():
        run(*calls[2])
    with toma_fx.stream(model, "a"):
        assert same(run(*calls[2]), oracle(*calls[2], stream="a"))
    with toma_fx.stream(model, "b"):
        assert same(run(*calls[2]), Oracle(model)(*calls[2]))
    assert reuse_stats(model).misses["reset"] == 1


@pytest.mark.parametrize("slots", [1, 2])
def test_prompts_interleave_as_if_each_were_alone(slots: int) -> None:
    """With a slot for each; with one in all every call selects, as the other was in between."""
    model = Tiny()
    run = compiled(model, slots=slots)
    oracles = [Oracle(model), Oracle(model)]
    pictures = [generation(range(5, 0, -1), picture, prompt=picture) for picture in range(2)]
    for calls in zip(*pictures, strict=True):
        for call, oracle in zip(calls, oracles, strict=True):
            expected = oracle(*call) if slots == 2 else Oracle(model)(*call)
            assert same(run(*call), expected)
    stats = reuse_stats(model)
    assert (stats.misses["conditioning"], stats.reuses) == ((0, 6) if slots == 2 else (9, 0))


def test_seeds_of_one_prompt_that_take_turns_are_told_apart_on_request() -> None:
    model = Tiny()
    run = compiled(model, guard=("timestep", "conditioning", "turns"))
    pictures = [generation(range(5, 0, -1), picture) for picture in range(2)]
    oracles = [Oracle(model), Oracle(model)]
    for calls in zip(*pictures, strict=True):
        for call, oracle in zip(calls, oracles, strict=True):
            anew, goes_on = Oracle(model)(*call), oracle(*call)
            result = run(*call)
            assert same(result, anew) or same(result, goes_on)


def test_one_step_pictures_of_one_seed_select_for_their_prompt() -> None:
    model = Tiny()
    run = compiled(model)
    for prompt in (0, 1, 2):
        call = inputs(9, 0, prompt)
        assert same(run(*call), Oracle(model)(*call))
    assert reuse_stats(model).selections == 3


def test_a_graph_compiled_inside_a_stream_belongs_to_it() -> None:
    model = Tiny()
    run, oracle = compiled(model), Oracle(model)
    run(*inputs(9, 1))
    wide = SHAPES[2]
    with toma_fx.stream(model, "a"):
        assert same(run(*inputs(9, 1, 0, wide)), oracle(*inputs(9, 1, 0, wide), stream="a"))
    outside = inputs(8, 2, 1, wide)  # the timestep fell, but this stream has no plan
    assert same(run(*outside), Oracle(model)(*outside))
    with toma_fx.stream(model, "a"):
        inside = inputs(8, 3, 0, wide)
        assert same(run(*inside), oracle(*inside, stream="a"))
    assert reuse_stats(model).misses["cold"] == 3


def test_a_reset_inside_a_stream_reaches_all_streams() -> None:
    model = Tiny()
    run = compiled(model)
    calls = generation(range(9, 0, -1))
    run(*calls[0])
    with toma_fx.stream(model, "a"):
        run(*calls[0])
        toma_fx.reset(model)
        assert same(run(*calls[1]), Oracle(model)(*calls[1]))
    assert same(run(*calls[2]), Oracle(model)(*calls[2]))
    assert reuse_stats(model).selections == 4


def test_streams_of_one_model_leave_another_alone() -> None:
    model, other = Tiny(), Tiny(1)
    run = compiled(model)
    calls = generation(range(9, 0, -1))
    oracle = Oracle(model)
    assert same(run(*calls[0]), oracle(*calls[0]))
    with toma_fx.stream(other, "a"):
        assert same(run(*calls[1]), oracle(*calls[1]))
    assert reuse_stats(model).reuses == 1


def test_no_value_recompiles() -> None:
    """One graph for all timesteps, prompts, noises and grids, with and without streams."""
    model = Tiny()
    torch._dynamo.utils.counters.clear()
    run = compiled(model)
    run(*inputs(9))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for number, timestep in enumerate((8.0, 7.25, 9.0, 9.0, math.inf, 0.0)):
            run(*inputs(timestep, number, number, turned=number % 2 == 1))
        toma_fx.reset(model)
        with toma_fx.stream(model, "a"):
            run(*inputs(1))
    assert torch._dynamo.utils.counters["toma_fx"]["graphs_rewritten"] == 1
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_nan_timesteps_and_latents_are_never_reused() -> None:
    model = Tiny()
    run = compiled(model)
    run(*inputs(9))
    for timestep in (math.nan, math.nan, 8.0):
        run(*inputs(timestep))
    noise, *rest = inputs(8.0)
    broken = noise.clone()
    broken[..., 0] = math.nan
    run(broken, *rest)
    run(broken, *rest)
    after = inputs(7.0, 5)
    run(*after)
    assert reuse_stats(model).misses["new_generation"] == 6
    toma_fx.reset(model)
    assert same(run(*after), Oracle(model)(*after))


def test_plans_do_not_keep_a_model_alive() -> None:
    model = Tiny()
    run = compiled(model)
    run(*inputs(9))
    (state,) = toma_fx.reuse._of(model)
    gone = [weakref.ref(model), weakref.ref(state), weakref.ref(state.tally)]
    with toma_fx.stream(model, "a"):
        run(*inputs(9))
    del model, run, state
    torch._dynamo.reset()
    gc.collect()
    assert [reference() for reference in gone] == [None] * 3


class Modulated(nn.Module):
    """A block as regional compilation sees it: the timestep's embedding comes from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Tiny()

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        x = x + self.inner.mlp(self.inner.norm1(x) * (1 + shift))
        return x + self.inner.mlp(self.inner.norm2(x))


def modulated_inputs(number: int) -> tuple[Tensor, Tensor]:
    return seeded(number, 1, 64, 16), seeded(50 + number, 1, 1, 16)


def test_without_a_timestep_every_call_selects_anew() -> None:
    model = Modulated()
    run = compiled(model, order="stripe")
    with pytest.warns(UserWarning, match="no single timestep input"):
        results = [run(*modulated_inputs(0))]
    results += [run(*modulated_inputs(number)) for number in (1, 2)]
    assert len(last_report().merged) == 2
    assert any("every call selects anew" in note for note in last_report().notes)
    for number in (2, 1):  # in another order: nothing is remembered
        assert torch.equal(run(*modulated_inputs(number)), results[number])


@pytest.mark.filterwarnings("ignore:toma_fx")
def test_without_a_timestep_selections_are_counted() -> None:
    model = Modulated()
    run = compiled(model, order="stripe")
    for number in range(3):
        run(*modulated_inputs(number))
    assert reuse_stats(model).selections == 3


class TwoClocks(nn.Module):
    """Two scalars feed sinusoidal embeddings, and no name tells which is the timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Tiny()

    def forward(self, hidden: Tensor, sigma: Tensor, strength: Tensor, ids: Tensor) -> Tensor:
        angle = strength.reshape(-1, 1) * torch.arange(1, 4)
        prompt = torch.cat((angle.sin(), angle.cos()), -1)
        return self.inner(hidden, sigma, prompt, ids)


def two_clocks(sigma: float, strength: float, latents: int) -> dict[str, Tensor]:
    hidden, clock, _, ids = inputs(sigma, latents)
    return {"hidden": hidden, "sigma": clock, "strength": torch.tensor(strength), "ids": ids}


def test_the_timestep_can_be_named() -> None:
    model = TwoClocks()
    run = compiled(model, timestep_input="sigma", guard=("timestep",))
    run(**two_clocks(9, 1, 0))
    assert not any("timestep" in note for note in last_report().notes)
    run(**two_clocks(8, 2, 1))  # the other one may rise
    assert (reuse_stats(model).selections, reuse_stats(model).reuses) == (1, 1)
    run(**two_clocks(9, 1, 2))
    assert reuse_stats(model).misses["new_generation"] == 1


@pytest.mark.parametrize("name", [None, "sigmas"])
def test_an_unknown_timestep_is_reported_and_never_guessed(name: str | None) -> None:
    model = TwoClocks()
    said = "no single timestep input" if name is None else "timestep_input='sigmas' is no input"
    run = compiled(model, timestep_input=name)
    with pytest.warns(UserWarning, match=said):
        run(**two_clocks(9, 1, 0))
    (note,) = last_report().notes
    assert said in note
    if name:
        assert all(known in note for known in ("hidden", "sigma", "strength"))
    later = run(**two_clocks(8, 1, 1))
    run = compiled(model, timestep_input="sigma")
    assert torch.equal(run(**two_clocks(8, 1, 1)), later)  # as if it were the first


@pytest.mark.parametrize(
    ("preset", "selections", "weighings"),
    [(TomaConfig.sdxl_paper, 2, 4), (TomaConfig.flux_paper, 20, 20)],
)
def test_presets_follow_their_papers(
    preset: Callable[..., TomaConfig], selections: int, weighings: int
) -> None:
    config = preset(window=WINDOW, min_tokens=16, regions="all")
    assert preset(share="block").share == "block"
    model = Tiny()
    run = compiled(model, **dataclasses.asdict(config))
    for call in generation(range(20, 0, -1)):
        run(*call)
    stats = reuse_stats(model)
    assert (stats.steps, stats.selections, stats.weighings) == (20, selections, weighings)


def test_streams_may_be_left_in_any_order() -> None:
    model = Tiny()
    run, oracle = compiled(model), Oracle(model)
    calls = generation(range(9, 0, -1))
    assert same(run(*calls[0]), oracle(*calls[0]))
    first, second = toma_fx.stream(model, "a"), toma_fx.stream(model, "b")
    for opened in (first, second):
        opened.__enter__()
        run(*inputs(9, 50))
    for opened in (first, second):
        opened.__exit__(None, None, None)
    assert same(run(*calls[1]), oracle(*calls[1]))


class PlainNumber(nn.Module):
    """A model whose timestep is a number of Python."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Tiny()

    def forward(self, hidden: Tensor, timestep: float, prompt: Tensor, ids: Tensor) -> Tensor:
        return self.inner(hidden, torch.tensor(timestep), prompt, ids)


class Scaled(PlainNumber):
    """Arithmetic on the number, and a list of it."""

    def forward(self, hidden: Tensor, timestep: float, prompt: Tensor, ids: Tensor) -> Tensor:
        clock = torch.tensor([timestep * 3 / 3], dtype=torch.float32)
        return self.inner(hidden, clock.expand(len(hidden)), prompt, ids)


@pytest.mark.filterwarnings("ignore:toma_fx")
@pytest.mark.parametrize("fullgraph", [False, True])
@pytest.mark.parametrize("build", [PlainNumber, Scaled])
@pytest.mark.parametrize("number", [float, int])
def test_timesteps_that_are_numbers_compile_twice_at_most(
    number: Callable[[int], float], build: type[PlainNumber], fullgraph: bool
) -> None:
    model = build()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    options = {**OPTIONS, "inner_backend": "aot_eager"}
    run = torch.compile(model, backend="toma", fullgraph=fullgraph, options=options)
    oracle = Oracle(model.inner)
    for call in generation([9, 8, 7, 6, 1]):
        hidden, timestep, *rest = call
        result = run(hidden, number(timestep.item()), *rest)
        # The first graph knows its timestep by heart and selects; the second one begins cold.
        if timestep.item() > 7:
            oracle.forget()
        assert same(result, oracle(*call))
    assert torch._dynamo.utils.counters["toma_fx"]["graphs_rewritten"] == 2


def test_two_models_of_one_class_have_plans_of_their_own() -> None:
    model, other = Tiny(0), Tiny(1)
    run = compiled(model)
    other_run = torch.compile(other, backend="toma", fullgraph=True, options=OPTIONS)
    run(*inputs(9, 1))
    call = inputs(8, 2)
    assert same(other_run(*call), Oracle(other)(*call))


def test_replaced_parameters_still_find_their_plans() -> None:
    model = Tiny()
    run = compiled(model)
    run(*inputs(9, 1))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    toma_fx.reset(model)
    call = inputs(8, 2)
    assert same(run(*call), Oracle(model)(*call))


def test_inductor_reuses_by_the_same_rules() -> None:
    """Generated kernels, once: guard state and plans live in buffers that its graph mutates."""
    model = Tiny()
    options = {"select_every": 4, "weigh_every": 2}
    run, oracle = compiled(model, inner_backend="inductor", **options), Oracle(model, **options)
    calls = generation([9, 8, 7, 6, 5, 4, 9, 8])
    calls.append(inputs(8, 7, 1))
    for call in calls:
        assert same(run(*call), oracle(*call))
    with failing():
        run(*inputs(7, 8))
    assert same(run(*inputs(6, 9)), Oracle(model, **options)(*inputs(6, 9)))
    stats = reuse_stats(model)
    assert (stats.misses["cold"], stats.misses["reset"]) == (2, 1)
    assert_adds_up(stats, 10)


def test_sdxl_reuses_with_sequential_guidance() -> None:
    model = sdxl()
    run = compiled(model, select_every=4, weigh_every=2, window=8)
    prompts = [sdxl_inputs(model, 16, 16, batch=1) for _ in range(2)]
    for step in range(10):
        sample = seeded(step, 1, 4, 16, 16)
        for prompt in prompts:
            run(**{**prompt, "sample": sample, "timestep": torch.tensor(900 - 90 * step)})
    stats = reuse_stats(model)
    assert (stats.steps, stats.selections, stats.weighings) == (10, 2 * 3, 2 * 5)
    assert_adds_up(stats, 20)


def test_flux_selects_anew_on_another_grid() -> None:
    model = flux(num_layers=1, num_single_layers=1)
    given_ = flux_inputs(model, 8, 12)
    run = compiled(model)
    for timestep, ids in ((0.9, (8, 12)), (0.8, (8, 12)), (0.7, (12, 8)), (0.6, (12, 8))):
        clock = torch.full((1,), timestep)
        result = run(**{**given_, "timestep": clock, "img_ids": positions(*ids)})[0]
    stats = reuse_stats(model)
    assert (stats.misses["grid"], stats.reuses) == (1, 2)
    run = compiled(model)
    for timestep in (0.7, 0.6):
        clock = torch.full((1,), timestep)
        again = run(**{**given_, "timestep": clock, "img_ids": positions(12, 8)})[0]
    assert torch.equal(result, again)
