"""Bytes and seconds on several GPUs, by hand, and the tables of them in the documentation."""

from __future__ import annotations

import pytest

from benchmarks.scale import (
    MODELS,
    Blocks,
    Model,
    exchanged,
    flops,
    main,
    sent,
    simulate,
    table,
)
from tests.docs.pages import DOCS
from toma_fx.devices import PROFILES

TOY = Model("toy", (8, 8), 16, 4, (Blocks(2, 12, 2), Blocks(1, 12, 1)))
H100 = PROFILES["h100"]


def test_an_exchange_sends_a_ranks_text_and_what_is_left_of_its_tokens() -> None:
    assert exchanged(64, 16, 4, ranks=2, ratio=0.0) == (16 + 64) / 2 * 4 * 2
    assert exchanged(64, 16, 4, ranks=4, ratio=0.75, item=4) == (16 + 16) / 4 * 4 * 4


def test_a_call_sends_four_exchanges_an_attention_but_what_stays() -> None:
    assert sent(TOY, 2, 0.5) == 3 * 4 * (16 + 32) / 2 * 4 * 2 / 2
    whole, half = sent(TOY, 2, 0.0), sent(TOY, 2, 0.5)
    assert sent(TOY, 2, 0.5, keys="all") == pytest.approx((whole + half) / 2)


def test_products_of_all_ranks_are_those_of_one() -> None:
    linear, attention, merging = flops(TOY, 1, 0.5)
    left = 16 + 32
    assert linear == 3 * 2 * 12 * 4**2 * left
    assert attention == 3 * 4 * 4 * left**2
    assert merging == (2 * 2 + 1) * 4 * 4 * 64 * 32
    assert flops(TOY, 4, 0.5) == (linear / 4, attention / 4, merging / 4)
    assert flops(TOY, 1, 0.0)[2] == 0


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_merging_sends_less_and_more_devices_are_faster(model: Model, ranks: int) -> None:
    calls = [simulate(model, ranks, ratio, H100, 450e9, 2e-5) for ratio in (0.0, 0.5, 0.75)]
    assert calls[0].sent > calls[1].sent > calls[2].sent
    assert calls[0].seconds > calls[1].seconds > calls[2].seconds
    fewer = simulate(model, ranks // 2, 0.5, H100, 450e9, 2e-5)
    assert fewer.seconds > calls[1].seconds
    slower = simulate(model, ranks, 0.5, H100, 50e9, 2e-5)
    assert slower.compute == calls[1].compute
    assert slower.exchange > calls[1].exchange


def test_one_device_exchanges_nothing() -> None:
    call = simulate(TOY, 1, 0.5, H100, 1.0, 1.0)
    assert (call.sent, call.exchange) == (0.0, 0.0)


@pytest.mark.parametrize("bandwidth", [450, 50])
def test_the_tables_of_the_page(bandwidth: int, capsys: pytest.CaptureFixture[str]) -> None:
    page = next(page for page in DOCS if page.name == "scale.md").read_text()
    main(["--ratio", "0", "0.5", "--bandwidth", str(bandwidth)])
    assert capsys.readouterr().out.strip() in page


def test_a_table_of_one_model() -> None:
    lines = table([TOY], [2], [0.5], H100, 1e9, 0.0).splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("| toy | 2 | 0.5 | 0.00 GB |")
