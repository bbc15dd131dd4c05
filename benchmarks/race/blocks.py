"""Models that people run today, at full width and with few of their blocks.

A block costs what it costs in the whole model, and all blocks of a kind are alike: a few say what
merging gains, in a fraction of the memory and of the time to compile. Facts of the public
configurations; pictures of 1,024 pixels, videos of 480 × 832 pixels and 81 frames.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from toma_fx.cli.presets import Preset

_WAN, _QWEN = "WanTransformer3DModel", "QwenImageTransformer2DModel"
_Z_IMAGE = "ZImageTransformer2DModel"
_WAN_SMALL = {"num_attention_heads": 12, "ffn_dim": 8960}
_QWEN_ROPE = (16, 56, 56)

BLOCKS = {
    preset.name: preset
    for preset in (
        Preset("wan-1.3b-blocks", _WAN, {**_WAN_SMALL, "num_layers": 4}),
        Preset("wan-14b-blocks", _WAN, {"num_layers": 2}),
        Preset("qwen-image-blocks", _QWEN, {"num_layers": 3, "axes_dims_rope": _QWEN_ROPE}),
        Preset("z-image-blocks", _Z_IMAGE, {"n_layers": 3, "n_refiner_layers": 1}),
    )
}
BLOCK_TITLES = {
    "wan-1.3b-blocks": "Wan 2.1 1.3B, 4 of 30 blocks, 81 frames",
    "wan-14b-blocks": "Wan 2.1 14B, 2 of 40 blocks, 81 frames",
    "qwen-image-blocks": "Qwen-Image, 3 of 60 blocks",
    "z-image-blocks": "Z-Image, 3 of 30 blocks",
}
FRAMES = {"wan-1.3b-blocks": 21, "wan-14b-blocks": 21}
"""Frames of the latents; a model that is not here makes pictures."""


class OnePicture(nn.Module):
    """Z-Image for a single picture, with the arguments that the other models take."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, timestep: Tensor
    ) -> Any:
        return self.inner(
            [hidden_states[0]], timestep, [encoder_hidden_states[0]], return_dict=False
        )[0]


def adapted(model: nn.Module) -> nn.Module:
    """The model, or a module around it that takes tensors by their usual names."""
    return OnePicture(model) if type(model).__name__ == _Z_IMAGE else model


def block_arguments(name: str, model: nn.Module, height: int, width: int) -> dict[str, Any]:
    """Keyword arguments of one step, on the device of the model.

    Args:
        name: a key of `BLOCKS`, or of a preset of the same class.
        model: built from it, adapted.
        height: of the picture in pixels; likewise `width`.
    """
    inner = getattr(model, "inner", model)
    first = next(model.parameters())
    like = {"device": first.device, "dtype": first.dtype}
    return _ARGUMENTS[type(inner).__name__](name, inner.config, height // 8, width // 8, like)


def _wan(name: str, config: Any, height: int, width: int, like: dict[str, Any]) -> dict[str, Any]:
    shape = (1, config.in_channels, FRAMES.get(name, 3), height, width)
    return {
        "hidden_states": torch.randn(shape, **like),
        "timestep": torch.full((1,), 500.0, device=like["device"]),
        "encoder_hidden_states": torch.randn(1, 512, config.text_dim, **like),
        "return_dict": False,
    }


def _qwen(name: str, config: Any, height: int, width: int, like: dict[str, Any]) -> dict[str, Any]:
    rows, columns = height // 2, width // 2
    return {
        "hidden_states": torch.randn(1, rows * columns, config.in_channels, **like),
        "encoder_hidden_states": torch.randn(1, 256, config.joint_attention_dim, **like),
        "timestep": torch.full((1,), 0.5, **like),
        "img_shapes": [[(1, rows, columns)]],
        "return_dict": False,
    }


def _z(name: str, config: Any, height: int, width: int, like: dict[str, Any]) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(1, config.in_channels, 1, height, width, **like),
        "encoder_hidden_states": torch.randn(1, 128, config.cap_feat_dim, **like),
        "timestep": torch.full((1,), 0.5, **like),
    }


_ARGUMENTS: dict[str, Callable[[str, Any, int, int, dict[str, Any]], dict[str, Any]]] = {
    _WAN: _wan,
    _QWEN: _qwen,
    _Z_IMAGE: _z,
}
