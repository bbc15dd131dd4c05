"""A whole race on tiny models: what is measured, skipped and failed, and the parts of a step."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch

pytest.importorskip("diffusers")

from benchmarks.race import heat as heats_of
from benchmarks.race.contestants import CHAMPION, CONTESTANTS, REFERENCE, Contestant
from benchmarks.race.grid import Case
from benchmarks.race.heat import prepare, race
from benchmarks.race.models import twin
from benchmarks.race.start import Setting, SkipError, setting_of, start
from tests.models import flux, flux_inputs, sdxl, sdxl_inputs

EAGER = {"inner_backend": "eager", "min_tokens": 16, "window": 4}


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    torch._dynamo.reset()
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def unet() -> Setting:
    model = sdxl()
    return setting_of(model, sdxl_inputs(model, 16, 16), torch.device("cpu"))


@pytest.fixture(scope="module")
def transformer() -> Setting:
    model = flux()
    return setting_of(model, flux_inputs(model, 8, 8), torch.device("cpu"))


def case(contestant: Contestant, ratio: float | None = 0.5) -> Case:
    return Case("sdxl-stage", 256, 256, contestant, ratio)


def test_timesteps_fall_and_stay_apart_in_bfloat16(transformer: Setting) -> None:
    times = [transformer.arguments(step)[1]["timestep"].bfloat16() for step in range(60)]
    assert all(after < before for before, after in pairwise(times))


def test_records_of_a_heat(unet: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heats_of, "CYCLE", 2)
    plain = case(Contestant(REFERENCE, "compile", {"backend": "eager"}), None)
    broken = Contestant("broken", "compile", {"backend": "no such backend"})
    heat = [
        plain,
        case(Contestant(CHAMPION, "toma", EAGER, merges=True)),
        case(Contestant("unknown", "toma", {"no_such_option": 1}, merges=True)),
        case(broken, None),
    ]
    reference = prepare(plain, unet, cold=False)
    records = race(heat, unet, reference, cycles=1, cold=False, flops=10**12)
    assert {key: record["status"] for key, record in records.items()} == {
        heat[0].key: "done",
        heat[1].key: "done",
        heat[2].key: "skipped",
        heat[3].key: "failed",
    }
    first, merged, skipped, failed = (records[entry.key] for entry in heat)
    assert first["speedup"] == 1.0
    assert first["ceiling"] is None
    assert merged["ceiling"] > 1
    assert merged["change"] > 1e-3
    assert merged["kernels"] > 0
    assert merged["peak_bytes"] > 0
    assert merged["graphs"] == 1
    assert len(merged["all"]) == len(merged["plain"]) == 2
    assert merged["notes"][0].endswith("regions merged")
    assert "no_such_option" in skipped["reason"]
    assert "no such backend" in failed["reason"]
    assert {record["tokens"] for record in records.values()} == {256}


def test_nothing_merged_is_a_reason_to_skip(unet: Setting) -> None:
    entry = start(unet, "toma", {"inner_backend": "eager", "min_tokens": 10**6}, 0.5)
    with pytest.warns(UserWarning, match="merged nothing"):
        entry.step(0)
    with pytest.raises(SkipError, match="nothing merged"):
        entry.check(entry)


def test_a_value_that_is_not_allowed_is_a_reason_to_skip(unet: Setting) -> None:
    with pytest.raises(SkipError, match="ratio"):
        start(unet, "toma", {}, 1.5)


def test_the_tomesd_package_merges_or_is_skipped(unet: Setting, transformer: Setting) -> None:
    pytest.importorskip("tomesd")
    options = CONTESTANTS["tomesd package, eager"].options
    before = [type(module) for module in unet.model.modules()]
    entry = start(unet, "tomesd", options, 0.5)
    blocks = sum("BasicTransformerBlock" in kind.__name__ for kind in before)
    assert entry.notes == [f"{blocks} of {blocks} blocks merged"]
    assert [type(module) for module in unet.model.modules()] == before
    plain = start(unet, "eager", {}, None)
    assert not torch.equal(entry.step(0), plain.step(0))
    with pytest.raises(SkipError, match="merged nothing"):
        start(unet, "tomesd", options, 0.0)
    with pytest.raises(SkipError, match="no BasicTransformerBlock"):
        start(transformer, "tomesd", options, 0.5)


def test_the_cache_serves_every_other_step(
    transformer: Setting, unet: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda run, **_: run)
    entry = start(transformer, "cache", {"threshold": 0.7}, None)
    for step in range(8):
        entry.step(step)
    assert entry.notes == ["computes 4 of 8 steps"]
    assert [entry.phases(step) for step in range(2)] == ["compute", "reuse"]
    with pytest.raises(SkipError, match="top level"):
        start(unet, "cache", {"threshold": 0.7}, None)


def test_a_twin_shares_weights_and_nothing_else(transformer: Setting) -> None:
    copy = twin(transformer.model)
    pairs = zip(copy.parameters(), transformer.model.parameters(), strict=True)
    assert all(mine is theirs for mine, theirs in pairs)
    assert not {id(m) for m in copy.modules()} & {id(m) for m in transformer.model.modules()}
