"""What is found in SDXL and Flux.1-dev at full size, each traced once, on the meta device."""

from __future__ import annotations

import torch

from tests.helpers import capture, kinds
from tests.models import flux_inputs, full_flux, full_sdxl, sdxl_inputs
from toma_fx import Report, TomaConfig, rewrite


def test_every_region_of_sdxl_is_merged() -> None:
    with torch.device("meta"):
        model = full_sdxl()
        call = sdxl_inputs(model, 128, 128)
    gm, inputs = capture(model, **call)
    report = rewrite(gm, inputs, TomaConfig()).report
    attention = ("self_attention", "cross_attention", "feed_forward")
    expected = {(kind, tokens): n for kind in attention for tokens, n in ((4096, 10), (1024, 60))}
    assert kinds(report) == expected
    assert len(report.regions) == 210
    assert 0.4 < report.flops_after / report.flops_before < 0.5
    # One plan per run of blocks of one stream: 2 + 2 down, 1 in the middle, 3 + 3 up.
    assert len({region.group for region in report.regions}) == 11
    once_a_block(rewrite(gm, inputs, TomaConfig(scope="block")).report, 210, 70)


def test_every_image_region_of_flux_is_merged() -> None:
    with torch.device("meta"):
        model = full_flux()
        call = flux_inputs(model, 64, 64, text=512)
    gm, inputs = capture(model, **call)
    report = rewrite(gm, inputs, TomaConfig()).report
    assert kinds(report) == {
        ("joint_attention", 4096): 19,
        ("feed_forward", 4096): 19,
        ("parallel", 4096): 38,
    }
    assert kinds(report, "skipped") == {("feed_forward", 512): 19}
    assert {r.reason for r in report.regions if r.tokens == 512} == {
        "text stream: its tokens are never merged"
    }
    assert len({region.group for region in report.merged}) == 2
    once_a_block(rewrite(gm, inputs, TomaConfig(scope="block")).report, 19 * 2 + 38, 19 + 38)


def once_a_block(report: Report, merged: int, blocks: int) -> None:
    assert len(report.merged) == merged
    assert report.remarks == [f"merged once a block: {blocks} blocks"]
    assert {region.reason for region in report.merged} == {""}
