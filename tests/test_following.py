"""Blocks compiled apart, that follow their denoiser: as where the model is compiled whole."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from typing import Any

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import toma_fx
from tests.apart import OPTIONS as SMALL
from tests.apart import TOKENS, Denoiser, apart, call, compile_blocks, picture, run
from tests.models import flux_inputs, sdxl_inputs
from tests.remembering import small_flux, small_sdxl, worst
from tests.test_current_models import wan, wan_inputs
from tests.tiny import one_thread
from tests.zoo import packed
from tests.zoo.entries import alive, noise
from toma_fx import ConfigError, following, last_report, reuse_stats
from toma_fx.eager_guard import Schedule
from toma_fx.following import Call
from toma_fx.refresh import Memory, Rotation
from toma_fx.share import Share

__all__ = ["one_thread"]  # the fixture of these tests

OPTIONS: dict[str, Any] = {
    "inner_backend": "eager",
    "regions": "all",
    "min_tokens": 1,
    "scope": "region",
    "select_every": 3,
    "weigh_every": 2,
}


def model_of(name: str) -> tuple[Any, dict[str, Any]]:
    """A model whose tokens stand on a grid, and a call of it; the first argument is the latents."""
    if name == "sdxl":
        model: Any = small_sdxl()
        return model, sdxl_inputs(model, 9, 8)
    if name == "flux":
        model = small_flux(num_layers=2)
        return model, flux_inputs(model, 9, 8, 5)
    if name == "wan":
        return wan(), {**wan_inputs((3, 5, 7), 1), "return_dict": False}
    torch.manual_seed(0)
    call = {
        "hidden_states": noise(1, 77, 16),
        "encoder_hidden_states": noise(1, 10, 20),
        "timestep": torch.full((1,), 0.5),
        "img_shapes": [[(1, 7, 11)]],
        "return_dict": False,
    }
    return alive(packed.qwen(QwenImageTransformer2DModel)).eval(), call


def generations(inputs: dict[str, Any], latents: str) -> list[dict[str, Any]]:
    """Two, of ten steps."""
    calls = []
    for number in range(20):
        chance = torch.Generator().manual_seed(number)
        noise = torch.randn(inputs[latents].shape, generator=chance)
        time = torch.full_like(inputs["timestep"], 0.95 - number % 10 / 20)
        calls.append({**inputs, latents: noise, "timestep": time})
    return calls


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *(("sdxl", "toma"), ("sdxl", "refresh"), ("flux", "toma"), ("flux", "refresh")),
        *(("wan", "toma"), ("qwen", "refresh")),
    ],
)
def test_blocks_compiled_apart_equal_the_whole_model(name: str, method: str) -> None:
    model, inputs = model_of(name)
    calls = generations(inputs, next(iter(inputs)))
    options = {**OPTIONS, "method": method, **({"window": 4} if method == "toma" else {})}
    torch._dynamo.reset()
    whole = torch.compile(model, backend="toma", fullgraph=True, options=options)
    expected = [whole(**given)[0] for given in calls]
    wanted = reuse_stats(model)
    other = copy.deepcopy(model)
    toma_fx.follow(other)
    other.compile_repeated_blocks(backend="toma", fullgraph=True, options=options)
    found = [other(**given)[0] for given in calls]
    assert worst(found, expected) < 1e-4
    assert reuse_stats(other) == wanted
    assert wanted.selections == 8
    said = {"toma": "blocks of one list share a plan", "refresh": "each block remembers"}[method]
    assert any(said in remark for remark in last_report().remarks)


def test_nothing_recompiles_for_another_block_prompt_seed_or_number_of_steps() -> None:
    model = apart(Denoiser())
    torch._dynamo.utils.counters.clear()
    model(*call(0))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for number, (prompt, steps) in enumerate([(0, 10), (1, 4), (2, 7)]):
            run(model, picture(number, prompt, steps))
        assert reuse_stats(model).reuses > 0
        toma_fx.unfollow(model)
        model(*call(0))
        toma_fx.follow(model)
        with toma_fx.stream(model, "a"):
            model(*call(0))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize(("share", "plans"), [("run", 2), ("block", 3), ("region", 6)])
def test_plans_belong_to_a_list_or_to_each_block(share: str, plans: int) -> None:
    model = apart(Denoiser(), share=share)
    run(model, picture())
    stats = reuse_stats(model)
    assert (stats.groups, stats.steps, stats.selections) == (plans, 10, 4)
    said = "blocks of one list share" if share == "run" else "each block has a plan of its own"
    assert any(said in remark for remark in last_report().remarks)
    assert reuse_stats(model.others).groups == plans - {"run": 1, "block": 2, "region": 4}[share]


def test_sequential_guidance_keeps_a_plan_for_each_prompt() -> None:
    model = apart(Denoiser())
    halves = [picture(prompt=prompt) for prompt in (0, 1)]
    alone = [run(apart(Denoiser()), half) for half in halves]
    for number, both in enumerate(zip(*halves, strict=True)):
        for half, given in enumerate(both):
            assert torch.equal(model(*given), alone[half][number])
    stats = reuse_stats(model)
    assert (stats.steps, stats.selections, stats.reuses) == (10, 8, 6)


def test_unfollowed_blocks_plan_at_every_call_and_say_so() -> None:
    model, calls = apart(Denoiser(), follow=False, share="block"), picture()
    with pytest.warns(UserWarning, match=r"no single timestep input.*toma_fx\.follow\(model\)"):
        anew = run(model, calls)
    toma_fx.follow(model)
    followed = run(model, calls)
    assert [torch.equal(a, b) for a, b in zip(anew, followed, strict=True)] == [
        step % 3 == 0 for step in range(10)
    ]
    toma_fx.unfollow(model)
    assert all(torch.equal(a, b) for a, b in zip(run(model, calls), anew, strict=True))
    assert torch.equal(
        model.blocks[0](calls[3][0], calls[3][0][:, :1]),
        model.blocks[0](calls[3][0], calls[3][0][:, :1]),
    )


def test_a_block_that_remembers_is_plain_where_nobody_tells_the_step() -> None:
    plain, calls = Denoiser(), picture()
    model = apart(Denoiser(), method="refresh")
    run(model, calls)
    toma_fx.unfollow(model)
    with pytest.warns(UserWarning, match="the plain model runs"):
        assert torch.allclose(model(*calls[4]), plain(*calls[4]), atol=1e-6)
    model = apart(Denoiser(), follow=False, method="refresh")
    with pytest.warns(UserWarning, match=r"refresh needs to know.*toma_fx\.follow"):
        assert torch.allclose(model(*calls[4]), plain(*calls[4]), atol=1e-6)


@pytest.mark.parametrize("method", ["toma", "refresh"])
def test_a_block_that_was_left_out_missed_what_happened(method: str) -> None:
    """It begins anew where a picture began without it, and never goes on with another's."""
    options = {"method": method, "share": "block", "select_every": 100, "weigh_every": 100}
    calls = picture(1)

    def left_out(before: int) -> list[Tensor]:
        model = apart(Denoiser(), **options)
        run(model, picture(0)[:before])
        model.skipped = {model.blocks[1]}
        run(model, calls[:2])
        model.skipped = set()
        return run(model, calls[2:5])

    assert all(map(torch.equal, left_out(before=4), left_out(before=0)))


def test_the_memory_of_a_block_is_as_old_as_it_is() -> None:
    """Calls that leave it out compute none of its tokens, but pass."""
    left_out = {3: {1}, 4: {1}, 5: {0, 2}, 7: {1, 2}}
    model, calls = Denoiser(), picture()
    wanted = remembered_by_hand(model, calls, left_out)
    blocks = (*model.blocks, *model.others)
    compiled, found = apart(model, method="refresh", ratio=0.5), []
    for number, given in enumerate(calls):
        model.skipped = {blocks[place] for place in left_out.get(number, ())}
        found.append(compiled(*given))
    assert worst(found, wanted) < 1e-5


def remembered_by_hand(
    model: Denoiser, calls: list[tuple[Tensor, ...]], left_out: dict[int, set[int]]
) -> list[Tensor]:
    blocks: list[Any] = [*model.blocks, *model.others]
    cells = tuple((0, place) for place in range(TOKENS))
    memories = [[Memory(Rotation(cells, Share(1, 2))) for _ in range(2)] for _ in blocks]
    turns, found = [0] * len(blocks), []
    for number, (hidden, timestep, prompt) in enumerate(calls):
        shift = model.shift(timestep, prompt)
        for place in sorted(set(range(len(blocks))) - left_out.get(number, set())):
            block = blocks[place]
            for memory, seen in zip(memories[place], block.entries(shift), strict=True):
                rows = memory.rotation.rows(turns[place])
                computed = block.mlp(seen(hidden))[:, rows]
                hidden = hidden + memory.recall(computed, turns[place], number)
            turns[place] += 1
        found.append(hidden)
    return found


def test_two_models_of_one_class_share_code_and_nothing_else() -> None:
    alone = [run(apart(Denoiser(seed)), picture(seed)) for seed in (0, 1)]
    models = [apart(Denoiser(0)), Denoiser(1)]
    compile_blocks(models[1])
    toma_fx.follow(models[1])
    torch._dynamo.utils.counters.clear()
    for step in range(10):
        for seed, model in enumerate(models):
            assert torch.equal(model(*call(step, seed)), alone[seed][step])
    assert torch._dynamo.utils.counters["toma_fx"]["graphs_rewritten"] == 1
    assert [reuse_stats(model).selections for model in models] == [4, 4]


def test_two_threads_run_two_streams_of_one_model() -> None:
    alone = [run(apart(Denoiser()), picture(number)) for number in (0, 1)]
    model = apart(Denoiser())
    model(*call(0, 5))
    found: dict[int, list[Tensor]] = {}
    turns = threading.Barrier(2, timeout=60)

    def paint(number: int) -> None:
        found[number] = []
        with torch.no_grad(), toma_fx.stream(model, str(number)):
            for given in picture(number):
                turns.wait()
                found[number].append(model(*given))

    threads = [threading.Thread(target=paint, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in (0, 1):
        assert all(torch.equal(a, b) for a, b in zip(found[number], alone[number], strict=True))
    assert reuse_stats(model).selections == 1 + 2 * 4


def test_a_reset_begins_anew_and_keeps_the_statistics() -> None:
    model, calls = apart(Denoiser()), picture()
    run(model, calls[:2])
    toma_fx.reset(model)
    assert torch.equal(model(*calls[2]), apart(Denoiser())(*calls[2]))
    stats = reuse_stats(model)
    assert (stats.steps, stats.misses["cold"], stats.misses["reset"]) == (3, 1, 1)


def test_a_failed_call_leaves_no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the whole denoiser: blocks before the one that failed have made theirs."""
    model, calls = apart(Denoiser()), picture()
    run(model, calls[:2])
    with monkeypatch.context() as patched:
        plan = toma_fx.reference.similarity
        made: list[int] = []

        def fails(*given: Any) -> Tensor:
            made.append(1)
            if len(made) == 2:
                raise KeyboardInterrupt
            return plan(*given)

        patched.setattr("toma_fx.reference.similarity", fails)
        with pytest.raises(KeyboardInterrupt):
            model(*calls[3])
    assert torch.equal(model(*calls[4]), apart(Denoiser())(*calls[4]))


def test_what_is_kept_goes_with_the_model() -> None:
    model = apart(Denoiser())
    run(model, picture()[:2])
    handle = toma_fx.follow(model)
    kept = [*toma_fx.owners.owners_in(model), handle, *handle.tallies()]
    gone = [weakref.ref(one) for one in kept]
    del model, handle, kept
    gc.collect()
    assert [one() for one in gone] == [None] * len(gone)


def test_a_model_is_followed_once_and_a_copy_of_it_is_not() -> None:
    model = apart(Denoiser())
    assert toma_fx.follow(model) is toma_fx.follow(model)
    other = copy.deepcopy(model)
    compile_blocks(other)
    other(*call(0))
    assert reuse_stats(model).steps == 0
    with toma_fx.follow(other) as handle:
        counted = reuse_stats(other).steps
        other(*call(0))
        assert reuse_stats(other).steps == counted + 1
    assert handle.is_removed
    handle.remove()
    assert not following.calls()
    toma_fx.unfollow(other)
    with pytest.raises(ConfigError, match="follow needs the model"):
        toma_fx.follow("flux")  # type: ignore[arg-type]


def test_the_whole_model_still_sees_its_own_step() -> None:
    model = Denoiser()
    toma_fx.follow(model)
    torch._dynamo.reset()
    whole = torch.compile(model, backend="toma", fullgraph=True, options=SMALL)
    run(whole, picture())
    stats = reuse_stats(model)
    assert (stats.steps, stats.selections) == (10, 4)


class NoWait(TorchDispatchMode):
    """Fails where a value is read on the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket is not torch.ops.aten._local_scalar_dense
        assert func.overloadpacket not in (torch.ops.aten.nonzero, torch.ops.aten.equal)
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device() -> None:
    model = Denoiser()
    seen: list[Call] = []
    handle = toma_fx.follow(model)
    model.blocks[0].register_forward_pre_hook(lambda *_: seen.extend(following.calls()))
    run(model, picture()[:2])
    schedule = Schedule.of(toma_fx.TomaConfig())
    with NoWait():
        for one in seen:
            assert one.moment(schedule, torch.device("cpu")) is not None
    assert handle.tallies()[0][1] == 2


@pytest.mark.parametrize("timestep", [9, 9.0, torch.tensor([9.0]), torch.tensor([[0.0, 9.0]])])
def test_timesteps_may_be_numbers_and_of_each_token(timestep: Any) -> None:
    class Echo(nn.Module):
        def forward(self, hidden: Tensor, timestep: Any) -> Tensor:
            moments.append(following.calls()[0].moment(schedule, hidden.device))
            return hidden

    moments: list[Any] = []
    schedule = Schedule.of(toma_fx.TomaConfig(select_every=2))
    model = Echo()
    toma_fx.follow(model)
    told = []
    for step in range(3):
        model(torch.randn(1, 4, 4), timestep - step)
        told.append(moments[-1]["toma_moment_told"].tolist())
    first = told[0][0]
    assert told == [
        [first, first, first, 0],
        [first, first, first, 1],
        [first, first + 2, first + 2, 2],
    ]
