"""Weights drawn in place, blocks that share them, and models of today with few blocks."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("accelerate")

from benchmarks.race.blocks import BLOCKS, adapted, block_arguments
from benchmarks.race.models import TOYS, arguments_of, model_of, plain_flops
from benchmarks.race.start import setting_of
from benchmarks.race.weights import filled
from toma_fx.cli.presets import Preset, build

CPU = torch.device("cpu")


def flux(shared: bool) -> torch.nn.Module:
    make = lambda: build(TOYS["flux-toy"], CPU, torch.float32)  # noqa: E731
    return filled(make, CPU, torch.float32, shared)


def test_weights_depend_on_the_architecture_alone() -> None:
    torch.manual_seed(0)
    first = flux(shared=False)
    torch.manual_seed(1)
    second = flux(shared=False)
    for mine, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(mine, other)
        assert mine.isfinite().all()
    assert not first.training
    assert first.x_embedder.weight.std() > 0.1


def test_blocks_that_share_weights_keep_parameters_of_their_own() -> None:
    model = flux(shared=True)
    first, second = model.single_transformer_blocks[:2]
    for mine, other in zip(first.parameters(), second.parameters(), strict=True):
        assert mine is not other
        assert mine.data_ptr() == other.data_ptr()
    apart = flux(shared=False)
    first, second = apart.single_transformer_blocks[:2]
    assert first.proj_out.weight.data_ptr() != second.proj_out.weight.data_ptr()
    shapes = [parameter.shape for parameter in apart.parameters()]
    assert [parameter.shape for parameter in model.parameters()] == shapes


SMALL = {
    "wan-14b-blocks": {
        "num_layers": 1,
        "num_attention_heads": 2,
        "attention_head_dim": 24,
        "ffn_dim": 64,
        "text_dim": 32,
    },
    "qwen-image-blocks": {
        "num_layers": 1,
        "num_attention_heads": 2,
        "attention_head_dim": 32,
        "joint_attention_dim": 48,
        "axes_dims_rope": (8, 12, 12),
    },
    "z-image-blocks": {
        "n_layers": 1,
        "n_refiner_layers": 1,
        "dim": 64,
        "n_heads": 2,
        "n_kv_heads": 2,
        "cap_feat_dim": 32,
        "axes_dims": [8, 12, 12],
    },
}


@pytest.mark.parametrize("name", SMALL)
def test_a_step_of_the_models_of_today(name: str) -> None:
    """The arguments fit the class; the last axes of the result are those of the latents."""
    preset = BLOCKS[name]
    narrow = Preset(name, preset.class_name, {**preset.config, **SMALL[name]})
    model = adapted(filled(lambda: build(narrow, CPU, torch.float32), CPU, torch.float32))
    inputs = block_arguments("", model, 128, 192)
    setting = setting_of(model, inputs, CPU)
    first, rest = setting.arguments(1)
    with torch.no_grad():
        result = model(first, **rest)[0]
    assert result.shape[-2:] == first.shape[-2:]
    assert result.isfinite().all()


def test_full_width_of_the_public_configurations() -> None:
    widths = {"wan-1.3b-blocks": 1536, "wan-14b-blocks": 5120, "qwen-image-blocks": 3072}
    for name, width in {**widths, "z-image-blocks": 3840}.items():
        model = build(BLOCKS[name], torch.device("meta"), torch.bfloat16)
        assert max(p.shape[0] for n, p in model.named_parameters() if "to_q" in n) == width
        assert sum(p.numel() for p in model.parameters()) < 2e9


def test_a_model_of_the_race_is_filled_where_it_runs() -> None:
    model = model_of("flux-toy", CPU)
    inputs = arguments_of("flux-toy", model, 256, 256)
    assert inputs["hidden_states"].shape == (1, 256, 16)
    flops = plain_flops("flux-toy", 256, 256)
    assert flops is not None
    assert flops > 1e6
