"""Behind the door, batches share what is compiled; each has plans and memories of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.diffusers.door import (
    EAGER,
    Fold,
    compiles,
    config,
    fresh,
    no_recompile,
    picture,
    ran,
)
from tests.diffusers.test_resting import FALLING, Line
from tests.pipelines import Pipe, flux_pipe, sdxl_pipe
from toma_fx import reuse_stats
from toma_fx.diffusers import apply, enable, remove, status

__all__ = ["fresh"]  # the fixture of these tests

PIPES = {"sdxl": sdxl_pipe, "flux": flux_pipe}
SIZE = {"side": (128, 128)}


def pictures(pipe: Pipe, batches: tuple[int, ...]) -> list[Tensor]:
    return [pipe.run(batch, batch, batch=batch, **SIZE) for batch in batches]


@pytest.mark.parametrize("method", ["toma", "refresh"])
@pytest.mark.parametrize("regional", [False, True], ids=["whole", "apart"])
@pytest.mark.parametrize("name", PIPES)
def test_pictures_of_many_batches_share_a_compile(name: str, regional: bool, method: str) -> None:
    batches, pipe, how = (1, 2, 3, 4), PIPES[name](), config(method=method)
    # Of several items the first single block of Flux sees other strides than those behind it.
    one, several = (2, 3) if regional and name == "flux" else (1, 1)
    enable(pipe.pipeline, how, regional=regional, **EAGER)
    before = compiles()
    found = pictures(pipe, batches)
    # SDXL's guidance makes two items of one: no batch has a single item.
    assert compiles() - before == one + several
    with no_recompile():
        again = pictures(pipe, batches)
    assert all(map(torch.equal, found, again))
    enable(pipe.pipeline, how, regional=regional, dynamic=False, **EAGER)
    wanted = pictures(pipe, batches)
    assert compiles() - before == 2 * one + len(batches) * several
    for one, alone in zip(found, wanted, strict=True):
        assert torch.allclose(one, alone, atol=1e-5)
    assert len(status(pipe.pipeline).graphs[0].sizes) == len(batches)
    remove(pipe.pipeline)


def test_many_batches_are_no_sizes_to_be_limited() -> None:
    model = Fold()
    apply(model, config(), recompile_limit=3, **EAGER)
    for batch in range(1, 9):
        model(picture(batch=batch), torch.tensor([9.0]))
    assert [graph.state for graph in status(model).graphs] == ["merged"]
    assert reuse_stats(model).selections == 8


class Items(Line):
    """Pictures of several items."""

    def items(self, number: int, batch: int) -> Tensor:
        latents, time = picture(seed=number, batch=batch), self.scheduler.timesteps[number]
        found: Tensor = self.unet(latents, time)
        return found


def test_steps_of_every_batch_rest() -> None:
    """Also where the graph that rests has seen fewer batches than the one that computes."""
    how: dict[str, Any] = {"method": "refresh", "rest_every": 2}
    given = Items(Fold())
    apply(given, config(**how), **EAGER)
    given.begin(FALLING[0])
    given.items(0, batch=2)  # too short to rest
    for batch in (3, 4, 5):
        given.begin(*FALLING)
        for step in range(4):
            given.items(step, batch=batch)
        assert ran(given) == {"merged": 2, "resting": 2}
