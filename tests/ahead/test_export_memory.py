"""Memory in exported programs and packages: compiled, exported and eager are one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import toma_fx
from tests.ahead.small import Small, small_call
from tests.remembering import (
    OPTIONS,
    STEPS,
    Subject,
    by_hand,
    flux_subject,
    pictures,
    sdxl_subject,
    worst,
)
from toma_fx import TomaConfig

ALL = list(pictures())
CONFIG = TomaConfig(**OPTIONS)
HANDS: dict[str, dict[str, Any]] = {"sdxl": {"scope": "span"}, "flux": {"keys": "all"}}


def subject(name: str) -> Subject:
    if name == "sdxl":
        return sdxl_subject((6, 5), batch=1, transformer_layers_per_block=1)
    return flux_subject((6, 5), num_single_layers=1)


@pytest.mark.parametrize("name", HANDS)
def test_compiled_and_exported_graphs_remember_as_the_hand_does(name: str) -> None:
    """Two pictures of ten steps; memory is state of the program."""
    one = subject(name)
    options = {**OPTIONS, "inner_backend": "aot_eager"}
    with torch.no_grad():
        wanted = by_hand(one, one.by_hand(**HANDS[name]), ALL)
        program = torch.export.export(one.model, (), one.call(0), strict=False)
        merged = toma_fx.transform(program, CONFIG)
        assert {"toma_memory_times", "toma_memory_0_last_0"} <= set(dict(merged.named_buffers()))
        exported = merged.module()
        found = [exported(**one.call(step, picture))[0] for picture, step in ALL]
        assert worst(found, wanted) < 1e-4
        torch._dynamo.reset()
        compiled = torch.compile(one.model, backend="toma", options=options)
        found = [compiled(**one.call(step, picture))[0] for picture, step in ALL]
        assert worst(found, wanted) < 1e-4
    torch._dynamo.reset()


def test_a_package_keeps_its_memory_and_forgets_on_request(tmp_path: Path) -> None:
    model, path = Small(), tmp_path / "small.pt2"
    toma_fx.export(model, (), small_call(), path=path, config=CONFIG)
    package = toma_fx.load(path)
    torch._dynamo.reset()
    options = {**OPTIONS, "inner_backend": "eager"}
    compiled = torch.compile(model, backend="toma", options=options)

    def same(call: dict[str, Any]) -> bool:
        with torch.no_grad():
            return worst([package(**call)["noise"]], [compiled(**call)["noise"]]) < 1e-4

    assert all(same(small_call(step=step, picture=picture)) for picture, step in ALL)
    stats = package.stats()
    assert stats == toma_fx.reuse_stats(model)
    assert (stats.groups, stats.steps) == (0, 2 * STEPS)
    assert (stats.misses["cold"], stats.misses["new_generation"]) == (1, 1)
    # A timestep that falls would go on with the picture, if nothing had been forgotten.
    late = {**small_call(picture=3), "timestep": torch.tensor([0.5])}
    package.reset()
    assert not same(late)
    toma_fx.reset(model)
    package.reset()
    assert same(late)
    assert package.stats().misses["reset"] == 2
    torch._dynamo.reset()
