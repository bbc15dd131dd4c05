"""Every form of a denoiser draws what it should, beside others and again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.quality.contestant import Cache, Contestant
from benchmarks.quality.forms import config_of, form, hosted
from benchmarks.quality.painters import EmojiPainter
from tests.benchmarks.generators import CAPTIONS
from toma_fx.diffusers import status

STEPS = 4
MERGE = {"ratio": 0.5, "min_tokens": 16, "window": 4, "regions": "all"}


def paint(painter: EmojiPainter, model: Any, seed: int = 0) -> torch.Tensor:
    return painter.paint(CAPTIONS[:2], [seed, seed + 1], STEPS, model)


def merged(**more: Any) -> Contestant:
    return Contestant("merged", "x", {**MERGE, **more})


def cached(kind: str, **options: Any) -> Contestant:
    return Contestant(kind, "cache", cache=Cache(kind, options))


@torch._dynamo.config.patch(recompile_limit=1)
def test_forms_stand_beside_one_another(painter: EmojiPainter) -> None:
    """Past Dynamo's limit one of them would run as it is: nothing would be merged."""
    before, reference = dict(vars(painter.denoiser)), paint(painter, None)
    with (
        form(painter, Contestant("plain", "anchor"), STEPS, "aot_eager") as plain,
        form(painter, merged(), STEPS, "eager") as first,
        form(painter, merged(ratio=0.25), STEPS, "eager") as second,
    ):
        found = [paint(painter, model) for model in (plain, first, second)]
        again = [paint(painter, model) for model in (plain, first, second)]
    torch.testing.assert_close(found[0], reference)
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))
    changes = [float((one - reference).abs().mean()) for one in found]
    assert changes[0] < changes[2] < changes[1]
    assert vars(painter.denoiser) == before
    assert torch.equal(paint(painter, None), reference)


def test_what_needs_the_step_runs_behind_the_door(painter: EmojiPainter) -> None:
    late = merged(merge_steps=(0.5, 1.0))
    assert hosted(late.options or {})
    assert not hosted(MERGE)
    assert config_of(late.options or {}).merge_steps == (0.5, 1.0)
    seen: list[torch.Tensor] = []
    with form(painter, late, STEPS, "eager") as model:

        def watched(**inputs: Any) -> Any:
            found = model(**inputs)
            seen.append((found[0] - painter.denoiser(**inputs)[0]).abs().max())
            return found

        found = paint(painter, watched)
        assert torch.equal(paint(painter, model), found)  # generations are told apart
    assert [float(change) < 1e-5 for change in seen] == [True, True, False, False]


def test_steps_rest_behind_the_door(painter: EmojiPainter) -> None:
    """The first step is the plain one; the others are not, and a generation begins anew."""
    options = {"method": "refresh", "min_tokens": 16, "regions": "all"}
    one = Contestant("rests", "x", {**options, "rest_every": 2, "dense_steps": (0,)})
    graphs: list[str] = []
    with form(painter, one, STEPS, "eager") as model:
        found = paint(painter, model)
        assert torch.equal(paint(painter, model), found)
        graphs += [row.graph for row in status(model).graphs for _ in range(row.steps)]
    assert sorted(graphs) == ["dense", "merged", "resting", "resting"]
    assert not torch.allclose(found, paint(painter, None), atol=1e-3)


@pytest.mark.parametrize(
    ("name", "one"),
    [
        ("painter", cached("taylorseer", cache_interval=1, disable_cache_before_step=1)),
        ("unet", cached("taylorseer", cache_interval=1, disable_cache_before_step=1)),
        ("painter", cached("first block", threshold=0.0)),
        ("painter", cached("magcache", threshold=0.0, mag_ratios=[1.1] * STEPS)),
        ("unet", cached("deepcache", every=1)),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_a_cache_that_computes_every_step_changes_nothing(
    name: str, one: Contestant, request: pytest.FixtureRequest
) -> None:
    painter = request.getfixturevalue(name)
    with form(painter, one, STEPS, "eager") as model:
        torch.testing.assert_close(paint(painter, model), paint(painter, None))


@pytest.mark.parametrize(
    ("name", "one"),
    [
        ("painter", cached("taylorseer", cache_interval=2, disable_cache_before_step=1)),
        ("unet", cached("taylorseer", cache_interval=2, disable_cache_before_step=1)),
        ("painter", cached("taylorseer lite", cache_interval=2, disable_cache_before_step=1)),
        ("painter", cached("first block", threshold=0.5)),
        ("painter", cached("magcache", threshold=0.5, mag_ratios=[1.0] * STEPS)),
        ("painter", cached("fastercache", spatial_attention_block_skip_range=2)),
        ("unet", cached("deepcache", every=2)),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_a_cache_begins_anew_with_each_picture(
    name: str, one: Contestant, request: pytest.FixtureRequest
) -> None:
    painter = request.getfixturevalue(name)
    reference = paint(painter, None)
    with form(painter, one, STEPS, "eager") as model:
        found = paint(painter, model)
        paint(painter, model, seed=7)
        assert torch.equal(paint(painter, model), found)
    assert not torch.equal(found, reference)
    assert torch.equal(paint(painter, None), reference)


def test_full_steps_of_deepcache_may_merge(unet: EmojiPainter) -> None:
    both = replace(merged(), cache=Cache("deepcache", {"every": 2}))
    pictures = [paint(unet, None)]
    for one in (replace(both, options=None), both):
        with form(unet, one, STEPS, "eager") as model:
            pictures.append(paint(unet, model))
    changes = [(one - pictures[0]).abs().mean() for one in pictures[1:]]
    assert 0 < changes[0] < changes[1]


def test_blocks_that_a_cache_lets_run_may_merge(painter: EmojiPainter) -> None:
    """As the whole merges where it lets all of them run; and less of the picture where not."""
    alone = merged(method="refresh")
    pictures = [paint(painter, None)]
    for one in (alone, both(alone, threshold=0.0), both(alone, threshold=0.5)):
        with form(painter, one, STEPS, "eager") as model:
            pictures.append(paint(painter, model))
            assert torch.equal(paint(painter, model), pictures[-1])
    torch.testing.assert_close(pictures[2], pictures[1], atol=1e-4, rtol=0)
    assert (pictures[1] - pictures[0]).abs().mean() > 1e-3
    assert not torch.allclose(pictures[3], pictures[2], atol=1e-3)


def both(one: Contestant, **options: Any) -> Contestant:
    return replace(one, cache=Cache("first block", options))


@pytest.mark.parametrize(
    ("name", "one"),
    [
        ("painter", cached("first block", threshold=0.5)),
        ("unet", cached("deepcache", every=2)),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_a_cache_is_compiled_in_parts(
    name: str, one: Contestant, request: pytest.FixtureRequest
) -> None:
    painter = request.getfixturevalue(name)
    graphs: list[Any] = []

    def counting(graph_module: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph_module)
        return graph_module

    with form(painter, one, STEPS, counting) as model:
        compiled = paint(painter, model)
    with form(painter, one, STEPS, "eager") as model:
        torch.testing.assert_close(compiled, paint(painter, model))
    assert len(graphs) == {"first block": 6, "deepcache": 2}[one.name]
