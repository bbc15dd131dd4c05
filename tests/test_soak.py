"""A thousand steps in one process: nothing grows, every picture is right, statistics add up."""

from __future__ import annotations

import gc
import random
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

import toma_fx
from tests.tiny import (
    Oracle,
    Tiny,
    assert_adds_up,
    compiled,
    counts,
    inputs,
    one_thread,  # noqa: F401 - a fixture
    same,
)

STEPS = 1000
SHAPES = tuple((grid, batch) for grid in ((8, 8), (8, 12), (12, 12)) for batch in (1, 2))


def endless_calls(seed: int) -> Iterator[tuple[str, tuple[Tensor, ...]]]:
    """Stream and inputs of each step, picture after picture, of one to 20 steps."""
    dice = random.Random(seed)
    while True:
        shape, stream = dice.choice(SHAPES), dice.choice(("default", "default", "a", "b"))
        length = dice.choice((1, 4, 8, 12, 20))
        prompt, noise = dice.randrange(1000), dice.randrange(10**6)
        turned, guided = dice.random() < 0.3, dice.random() < 0.3
        for step in range(length):
            timestep = 1000 * (1 - step / length)
            for words in (prompt, prompt + 1)[: 1 + guided]:
                yield stream, inputs(timestep, noise + step, words, shape, turned)


def live_tensors() -> int:
    """Tensors with memory. Of those without, torch 2.11 keeps some in caches of bounded size."""
    gc.collect()
    kinds = [type(found) for found in gc.get_objects()]
    return sum(issubclass(kind, Tensor) and kind is not FakeTensor for kind in kinds)


def resident() -> int:
    """Bytes of the process; 0 where the system does not say."""
    sizes = Path("/proc/self/statm")
    return int(sizes.read_text().split()[1]) * resource.getpagesize() if sizes.exists() else 0


def test_a_thousand_steps_leave_nothing_behind() -> None:
    model = Tiny()
    options = {"select_every": 4, "weigh_every": 2}
    run, oracle = compiled(model, **options), Oracle(model, **options)
    calls = endless_calls(0)
    tensors: list[int] = []
    blocks: list[int] = []
    bytes_: list[int] = []
    # Everything is compiled, and every stream opened, before anything is measured.
    openings = [
        (stream, shape, slot)
        for shape in SHAPES
        for stream in ("default", "a", "b")
        for slot in (0, 1)
    ]
    for stream, shape, prompt in openings:
        paint(run, oracle, stream, inputs(1, prompt=prompt, shape=shape))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(len(openings), STEPS):
            paint(run, oracle, *next(calls))
            if step % (STEPS // 5) == STEPS // 5 - 1:
                tensors.append(live_tensors())
                blocks.append(sys.getallocatedblocks())
                bytes_.append(resident())
    stats = toma_fx.reuse_stats(model)
    assert stats.groups == len(SHAPES)
    assert counts(stats) == oracle.statistics()
    assert_adds_up(stats, STEPS)
    assert min(counts(stats)[name] for name in ("steps", "selections", "weighings", "reuses")) > 100
    assert len(tensors) == 5
    # From the second fifth on: what earlier tests left behind is freed in the first.
    assert len(set(tensors[1:])) == 1, f"live tensors: {tensors}"
    assert blocks[-1] - blocks[1] < STEPS // 2, f"blocks of Python's heap: {blocks}"
    assert bytes_[-1] - bytes_[1] < 16 * 2**20, f"bytes of the process: {bytes_}"


def paint(
    run: Callable[..., Tensor], oracle: Oracle, stream: str, call: tuple[Tensor, ...]
) -> None:
    inside = nullcontext() if stream == "default" else toma_fx.stream(oracle.model, stream)
    with inside:
        result = run(*call)
    assert same(result, oracle(*call, stream=stream))
