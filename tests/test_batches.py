"""One compile serves batches of every size, and each has plans and memories of its own."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import toma_fx
from tests.apart import CHANNELS, OPTIONS, TOKENS, Denoiser, compile_blocks
from tests.diffusers.door import compiles, graphs, no_recompile
from tests.helpers import Attention
from tests.models import flux, flux_inputs, sdxl, sdxl_inputs
from tests.tiny import seeded
from toma_fx import TomaWarning, last_report, reuse_stats

BATCHES = (1, 2, 3, 4, 8)
METHODS = ("toma", "refresh")
STEPS = 4
Given = tuple[Tensor, ...]


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    torch._dynamo.reset()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch._dynamo.reset()


def step(batch: int, number: int, tokens: int = TOKENS) -> Given:
    """Of a generation of so many items."""
    noise = seeded(100 * batch + number, batch, tokens, CHANNELS)
    return noise, torch.tensor(float(STEPS - number)), seeded(1000 + batch, batch, 6)


def whole(model: nn.Module, **how: Any) -> Callable[..., Any]:
    options = {**OPTIONS, **how.pop("options", {})}
    return torch.compile(model, backend="toma", fullgraph=True, options=options, **how)


def generation(run: Callable[..., Any], batch: int) -> list[Tensor]:
    return [run(*step(batch, number)) for number in range(STEPS)]


def alone(batches: Sequence[int], **options: Any) -> dict[int, list[Tensor]]:
    """Generations by static graphs, each of a model of its own."""
    found = {}
    for batch in dict.fromkeys(batches):
        torch._dynamo.reset()
        run = whole(Denoiser(), dynamic=False, options=options)
        found[batch] = generation(run, batch)
    torch._dynamo.reset()
    return found


def near(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    return all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_two_compiles_serve_all_batches(method: str) -> None:
    """One for a single item, which Dynamo keeps apart, and one for all others."""
    wanted = alone((*BATCHES, 5), method=method)
    run, before = whole(Denoiser(), options={"method": method}), compiles()
    for batch in BATCHES:
        assert near(generation(run, batch), wanted[batch])
    assert compiles() - before == 2
    assert last_report().merged
    with no_recompile():
        assert near(generation(run, 5), wanted[5])


@pytest.mark.parametrize("method", ["tomesd", "tofu", "todo"])
def test_methods_that_keep_nothing_share_a_compile(method: str) -> None:
    how = {"method": method, "grid": (8, 8), "order": "tile"}
    calls = [seeded(batch, batch, TOKENS, CHANNELS) for batch in (2, 5, 8)]
    wanted = []
    for given in calls:
        torch._dynamo.reset()
        wanted.append(whole(Attention(), dynamic=False, options=how)(given))
    torch._dynamo.reset()
    run, before = whole(Attention(), dynamic=True, options=how), compiles()
    assert near([run(given) for given in calls], wanted)
    assert compiles() - before == 1


@pytest.mark.parametrize("how", ["dynamic", "marked"])
@pytest.mark.parametrize("method", METHODS)
def test_a_batch_that_is_dynamic_from_the_start_compiles_once(how: str, method: str) -> None:
    wanted = alone((2, 3, 8), method=method)
    run = whole(Denoiser(), options={"method": method}, dynamic=True if how == "dynamic" else None)
    before = compiles()
    for batch in wanted:
        found = []
        for number in range(STEPS):
            given = step(batch, number)
            for tensor in (given[0], given[2]) if how == "marked" else ():
                torch._dynamo.mark_dynamic(tensor, 0)
            with warnings.catch_warnings():
                warnings.filterwarnings("error", "toma_fx: sizes marked dynamic", TomaWarning)
                found.append(run(*given))
        assert near(found, wanted[batch])
    assert compiles() - before == 1


@pytest.mark.parametrize("method", METHODS)
def test_generations_of_other_batches_take_turns(method: str) -> None:
    """Step by step, under one prompt and stream: none sees what another one keeps."""
    wanted = alone((2, 3, 4), method=method)
    model = Denoiser()
    run = whole(model, options={"method": method})
    found: dict[int, list[Tensor]] = {batch: [] for batch in wanted}
    for batch in wanted:  # compile
        run(*step(batch, 0))
    toma_fx.reset(model)
    with no_recompile():
        for number in range(STEPS):
            for batch, seen in found.items():
                seen.append(run(*step(batch, number)))
    for batch, results in wanted.items():
        assert near(found[batch], results)


@pytest.mark.parametrize("method", METHODS)
def test_blocks_compiled_apart_share_a_compile_as_well(method: str) -> None:
    models = Denoiser(), Denoiser()
    for model in models:
        toma_fx.follow(model)
    compile_blocks(models[0], method=method)
    before = compiles()
    found = [generation(models[0], batch) for batch in BATCHES]
    assert compiles() - before == 2  # one class of blocks
    stats = reuse_stats(models[0])
    for batch, results in zip(BATCHES, found, strict=True):
        torch._dynamo.reset()
        compile_blocks(models[1], method=method)
        assert near(generation(models[1], batch), results)
    assert stats.steps == STEPS * len(BATCHES)


@pytest.mark.parametrize(
    ("build", "inputs"), [(sdxl, sdxl_inputs), (flux, flux_inputs)], ids=["sdxl", "flux"]
)
def test_real_architectures_share_a_compile(build: Any, inputs: Any) -> None:
    model, sides = build(), (16, 16) if build is sdxl else (8, 8)
    # A position has three numbers: a batch of three would be told by them as well.
    calls = {batch: inputs(model, *sides, batch=batch) for batch in (2, 5, 4)}
    options = {"inner_backend": "aot_eager", "regions": "all", "min_tokens": 16}
    run = torch.compile(model, backend="toma", options=options)
    before = compiles()
    found = {batch: run(**given)[0] for batch, given in calls.items()}
    assert compiles() - before == 2  # Dynamo takes the first size for the only one
    torch._dynamo.reset()
    toma_fx.reset(model)
    static = torch.compile(model, backend="toma", options=options, dynamic=False)
    assert torch.allclose(static(**calls[4])[0], found[4], atol=1e-5)


def test_code_that_inductor_makes_serves_all_batches() -> None:
    options = {"inner_backend": "inductor"}
    model, before = Denoiser(lists=(1, 0)), graphs()
    run = whole(model, options=options, dynamic=True)
    found = {batch: generation(run, batch) for batch in (2, 3, 8)}
    assert graphs() - before == 1  # Dynamo began anew, to make tensors of its numbers
    torch._dynamo.reset()
    by_eager = whole(Denoiser(lists=(1, 0)), dynamic=False)
    for batch, results in found.items():
        assert near(results, generation(by_eager, batch))


@pytest.mark.parametrize(
    "options", [{"ratio": 0.0}, {"min_tokens": 10_000}, {"exclude": ("*",)}], ids=str
)
def test_what_merges_nothing_leaves_the_batch_a_symbol(options: dict[str, Any]) -> None:
    model = Denoiser()
    run, before = whole(model, options=options, dynamic=True), graphs()
    for batch in (2, 3, 8):
        given = step(batch, 0)
        assert torch.allclose(run(*given), model(*given), atol=1e-5)
    assert graphs() - before == 1


def test_a_larger_picture_is_still_decided_anew() -> None:
    """Too few tokens for one size: another one merges."""
    run = whole(Denoiser(), options={"min_tokens": TOKENS + 1}, dynamic=True)
    run(*step(2, 0))
    assert not last_report().merged
    run(*step(2, 0, tokens=4 * TOKENS))
    assert last_report().merged


def test_pairs_need_an_even_batch() -> None:
    options = {"cfg_pairs": True}
    wanted = alone((2, 4, 6), **options)
    run, before = whole(Denoiser(), options=options, dynamic=True), compiles()
    for batch in (2, 4, 6):
        assert near(generation(run, batch), wanted[batch])
    assert compiles() - before == 1
    run(*step(3, 0))
    assert not last_report().merged


class Halves(Denoiser):
    """Reads half of the items, rounded up: a size that does not grow evenly with the batch."""

    def shift(self, timestep: Tensor, prompt: Tensor) -> Tensor:
        half = prompt[: (prompt.shape[0] + 1) // 2]
        return super().shift(timestep, prompt) * half.mean()


def test_a_size_that_grows_otherwise_compiles_each_batch() -> None:
    run, before, found = whole(Halves(), dynamic=True), compiles(), {}
    for batch in (2, 3):
        found[batch] = generation(run, batch)
        assert any("each batch size compiles once" in text for text in last_report().remarks)
    assert compiles() - before == 2
    for batch, results in found.items():
        torch._dynamo.reset()
        assert near(results, generation(whole(Halves(), dynamic=False), batch))
