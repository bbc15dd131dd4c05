"""Pipelines from a local folder paint prompts with any denoiser."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.quality.painters import Cast, PipelinePainter
from tests.benchmarks.quality.test_networks import clip

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Stable Diffusion of a few thousand parameters, with a text encoder of two letters."""
    torch.manual_seed(0)
    clip(tmp_path / "clip")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path / "clip")
    config = transformers.CLIPModel.from_pretrained(tmp_path / "clip").config.text_config
    pipeline = diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4),
        text_encoder=transformers.CLIPTextModel(config),
        tokenizer=tokenizer,
        unet=diffusers.UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=2,
            cross_attention_dim=16,
            norm_num_groups=4,
        ),
        scheduler=diffusers.EulerDiscreteScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(tmp_path / "tiny-sd")
    return tmp_path / "tiny-sd"


def test_a_pipeline_paints_with_any_denoiser(folder: Path) -> None:
    painter = PipelinePainter(folder, torch.device("cpu"), 2.0, torch.float32)
    assert painter.name == "tiny-sd"
    both = painter.paint(["ab", "ba"], [1, 2], 2, None)
    assert both.shape[:2] == (2, 3)
    assert 0 <= both.min() <= both.max() <= 1
    torch.testing.assert_close(painter.paint(["ba"], [2], 2, None), both[1:], atol=1e-4, rtol=0)

    options = {"ratio": 0.5, "regions": "all", "min_tokens": 16, "window": 4}
    merged = torch.compile(
        painter.denoiser, backend="toma", options={**options, "inner_backend": "eager"}
    )
    with torch.no_grad():
        assert not torch.equal(painter.paint(["ab", "ba"], [1, 2], 2, merged), both)
    assert painter.pipeline.unet is painter.denoiser
    torch._dynamo.reset()


def test_a_cast_denoiser_keeps_its_door() -> None:
    cast = Cast(torch.nn.Linear(4, 4).bfloat16(), torch.bfloat16)
    assert cast(torch.ones(2, 4)).dtype == torch.float32
