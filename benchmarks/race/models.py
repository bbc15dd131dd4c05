"""Models of the race, and copies that share their weights.

Full models come from the presets of `toma-fx`. A CPU runs stages of them: layers of the same kind
and width, few of each. Toys are for trying the race itself.
"""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.race.blocks import BLOCK_TITLES, BLOCKS, adapted, block_arguments
from benchmarks.race.weights import filled
from toma_fx.cli.inputs import inputs_for
from toma_fx.cli.presets import PRESETS, Preset, build

STAGES = {
    preset.name: preset
    for preset in (
        # The second level of SDXL alone, 640 channels: its latents come as that level sees them.
        Preset(
            "sdxl-stage",
            PRESETS["sdxl"].class_name,
            {
                **PRESETS["sdxl"].config,
                "down_block_types": ("CrossAttnDownBlock2D",),
                "mid_block_type": None,
                "up_block_types": ("CrossAttnUpBlock2D",),
                "block_out_channels": (640,),
                "transformer_layers_per_block": (2,),
                "attention_head_dim": (10,),
                "layers_per_block": 1,
            },
        ),
        # Half of Flux's width: twelve heads of 128 channels.
        Preset(
            "flux-stage",
            PRESETS["flux-dev"].class_name,
            {
                "num_layers": 1,
                "num_single_layers": 2,
                "num_attention_heads": 12,
                "guidance_embeds": True,
            },
        ),
        # For the growth with the number of tokens: cheap enough for 16,384 of them.
        Preset(
            "narrow",
            PRESETS["flux-dev"].class_name,
            {**PRESETS["flux-small"].config, "num_layers": 1, "num_single_layers": 1},
        ),
    )
}
_TINY_UNET: dict[str, Any] = {
    **PRESETS["sdxl-small"].config,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "transformer_layers_per_block": (1, 1),
    "attention_head_dim": (2, 4),
    "cross_attention_dim": 48,
    "norm_num_groups": 8,
}
_TINY_FLUX: dict[str, Any] = {
    **PRESETS["flux-small"].config,
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "axes_dims_rope": (4, 6, 6),
}
_TINY_WAN: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "ffn_dim": 64,
    "text_dim": 32,
    "num_layers": 1,
}
TOYS = {
    preset.name: preset
    for preset in (
        Preset("sdxl-toy", PRESETS["sdxl"].class_name, _TINY_UNET),
        Preset("flux-toy", PRESETS["flux-dev"].class_name, _TINY_FLUX),
        Preset("wan-toy", BLOCKS["wan-14b-blocks"].class_name, _TINY_WAN),
    )
}
SHARED = frozenset(("flux-dev", "flux-toy"))
"""Models whose blocks share weights: the others fit into memory several times."""

TITLES = {
    "sdxl": "SDXL, guidance (batch 2)",
    "flux-dev": "Flux.1-dev",
    "sdxl-stage": "a stage of SDXL (640 channels, 6 blocks)",
    "flux-stage": "a stage of Flux (1536 channels, 1 joint and 2 single blocks)",
    "narrow": "Flux's layout (384 channels, 1 joint and 1 single block)",
    **{name: f"a toy ({preset.class_name})" for name, preset in TOYS.items()},
    **BLOCK_TITLES,
}


def preset_of(name: str) -> Preset:
    return (STAGES | TOYS | BLOCKS).get(name) or PRESETS[name]


def arguments_of(name: str, model: nn.Module, height: int, width: int) -> dict[str, Any]:
    """Of a step for a picture. Guidance doubles SDXL's batch; a stage on a CPU runs one item."""
    if name in BLOCKS or name == "wan-toy":
        return block_arguments(name, model, height, width)
    if name == "sdxl-stage":
        height, width = height // 2, width // 2
    return inputs_for(model, height, width, 1 if name in STAGES else None)


def model_of(name: str, device: torch.device) -> nn.Module:
    """Random weights; bfloat16 on a GPU."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if name in STAGES:
        return build(STAGES[name], device, dtype)
    preset, host = preset_of(name), torch.device("cpu")
    return adapted(filled(lambda: build(preset, host, dtype), device, dtype, name in SHARED))


def twin(model: nn.Module) -> nn.Module:
    """A copy with modules of its own and the same weights, for what patches modules in place."""
    shared: Any = {id(item): item for item in chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, shared)


def plain_flops(name: str, height: int, width: int) -> int | None:
    """Of one call, convolutions included; None of a model that does not run on the meta device.

    Counted on the meta device, with attention as the two matmuls that it is: the counter knows
    no fused attention of a CPU.
    """
    meta = torch.device("meta")
    model = adapted(build(preset_of(name), meta, torch.float32))
    inputs = arguments_of(name, model, height, width)
    counter = FlopCounterMode(display=False)
    try:
        with counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            model(**inputs)
    except (NotImplementedError, RuntimeError):
        return None
    return counter.get_total_flops()
