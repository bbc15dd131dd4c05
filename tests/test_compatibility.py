"""What people combine with a merged model: adapters, fused projections, hooks, quantisation."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers.hooks import apply_group_offloading
from diffusers.models.attention_dispatch import attention_backend
from torch import nn

from tests.eager_merge import HandMerge, merged_by_hand, relative
from tests.models import (
    flux,
    flux_inputs,
    sd3,
    sd3_inputs,
    sdxl,
    sdxl_inputs,
    stable_diffusion,
    stable_diffusion_inputs,
)
from toma_fx import last_report, reset
from toma_fx.diffusers import TokenMergingConfig, apply
from toma_fx.order import tile_order

SMALL: dict[str, Any] = {"regions": "all", "window": 4, "min_tokens": 64}
EAGER: dict[str, Any] = {"options": {"inner_backend": "eager"}}
FLUX: dict[str, Any] = {"num_layers": 1, "num_single_layers": 1}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        yield


def merged(model: nn.Module, inputs: dict[str, Any], **more: Any) -> torch.Tensor:
    """The result of a model after `apply`."""
    how = {"fullgraph": True, **EAGER, **more}
    apply(model, TokenMergingConfig(**SMALL), **how)
    result: torch.Tensor = model(**inputs)[0]
    return result


def assert_near(result: torch.Tensor, plain: torch.Tensor) -> None:
    """Merged, and not far from the plain result."""
    assert 1e-6 < relative(result, plain) < 0.2


@pytest.mark.parametrize("dual", [(), (0, 1)], ids=["large", "medium"])
def test_stable_diffusion_3_equals_blocks_merged_by_hand(dual: tuple[int, ...]) -> None:
    """Joint attention and feed-forward a block; dual attention is one region more."""
    model = sd3(dual_attention_layers=dual)
    inputs = sd3_inputs(model, 32, 48)
    with merged_by_hand(model, HandMerge(0.5, "region", lambda n: tile_order((16, 24), 8))):
        expected = model(**inputs)[0]
    options = {"inner_backend": "eager", "regions": "all", "share": "region"}
    result = torch.compile(model, backend="toma", fullgraph=True, options=options)(**inputs)[0]
    assert relative(result, expected) < 1e-4
    kinds = Counter(region.kind for region in last_report().merged)
    assert kinds == Counter(joint_attention=3, feed_forward=3, self_attention=len(dual))
    reasons = {r.reason for r in last_report().regions if r.status != "merged"}
    assert reasons == {"text stream: its tokens are never merged"}


@pytest.mark.parametrize("linear", [False, True], ids=["sd1.5", "sd2.1"])
def test_stable_diffusion_equals_blocks_merged_by_hand(linear: bool) -> None:
    model = stable_diffusion(use_linear_projection=linear)
    inputs = stable_diffusion_inputs(model, 16, 32)

    def sequence(tokens: int) -> torch.Tensor:
        return tile_order((16, 32) if tokens == 512 else (8, 16), 8)

    with merged_by_hand(model, HandMerge(0.5, "region", sequence)):
        expected = model(**inputs)[0]
    options = {"inner_backend": "eager", "regions": "all", "share": "region", "min_tokens": 1}
    result = torch.compile(model, backend="toma", fullgraph=True, options=options)(**inputs)[0]
    assert len(last_report().merged) == 4 * 3
    assert relative(result, expected) < 1e-4


def lora(model: Any, rank: int = 4, name: str = "default", scale: float = 0.1) -> dict[str, Any]:
    """The weights of a random adapter over the attention's projections."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(rank)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    model.add_adapter(peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), name)
    for path, weight in model.named_parameters():
        if f"lora_B.{name}" in path:
            weight.normal_(std=scale)
    return dict(peft.get_peft_model_state_dict(model, adapter_name=name))


@pytest.mark.parametrize("build", [flux, sdxl], ids=["flux", "sdxl"])
def test_lora_adapters_merge_with_their_linears(build: Any) -> None:
    model = build(**FLUX) if build is flux else build()
    inputs = flux_inputs(model, 16, 16) if build is flux else sdxl_inputs(model, 32, 32)
    without = model(**inputs)[0]
    lora(model)
    plain = model(**inputs)[0]
    result = merged(model, inputs)
    assert_near(result, plain)
    assert relative(result, plain) < relative(result, without)
    assert len(last_report().merged) == (3 if build is flux else 12)


def test_lora_hot_swap_does_not_compile_anew() -> None:
    adapters = []
    for rank in (4, 2):
        donor = flux(**FLUX)
        adapters.append({f"transformer.{k}": v for k, v in lora(donor, rank, scale=0.5).items()})
    model = flux(**FLUX)
    inputs = flux_inputs(model, 16, 16)
    model.enable_lora_hotswap(target_rank=4)
    model.load_lora_adapter(adapters[0], adapter_name="style")
    first = merged(model, inputs)
    with torch._dynamo.config.patch(error_on_recompile=True):
        model.load_lora_adapter(adapters[1], adapter_name="style", hotswap=True)
        reset(model)  # a pipeline does it where a generation begins
        second = model(**inputs)[0]
    assert relative(second, first) > 1e-3
    other = flux(**FLUX)
    other.load_lora_adapter(adapters[1], adapter_name="style")
    torch._dynamo.reset()
    assert relative(second, merged(other, inputs)) < 1e-4


@pytest.mark.parametrize("build", [flux, sdxl], ids=["flux", "sdxl"])
def test_fused_projections(build: Any) -> None:
    model = build(**FLUX) if build is flux else build()
    inputs = flux_inputs(model, 16, 16) if build is flux else sdxl_inputs(model, 32, 32)
    expected = merged(model, inputs)
    regions = len(last_report().merged)
    other = build(**FLUX) if build is flux else build()
    other.fuse_qkv_projections()
    assert relative(merged(other, inputs), expected) < 1e-4
    assert len(last_report().merged) == regions


def test_channels_last() -> None:
    model = sdxl()
    inputs = sdxl_inputs(model, 32, 32)
    expected = merged(model, inputs)
    other = sdxl().to(memory_format=torch.channels_last)
    inputs["sample"] = inputs["sample"].to(memory_format=torch.channels_last)
    assert relative(merged(other, inputs), expected) < 1e-4


def test_dynamic_shapes_are_specialised() -> None:
    model = flux(**FLUX)
    inputs = flux_inputs(model, 16, 16)
    expected = merged(model, inputs)
    other = flux(**FLUX)
    assert relative(merged(other, inputs, dynamic=True), expected) < 1e-5
    larger = flux_inputs(model, 16, 24)
    assert relative(other(**larger)[0], model(**larger)[0]) < 1e-5


def test_blocks_that_are_compiled_alone_are_correct() -> None:
    """Regional compilation: no reuse, and the picture's size must be told."""
    model = flux(**FLUX)
    inputs = flux_inputs(model, 16, 16)
    plain = model(**inputs)[0]
    options = {"inner_backend": "eager", **SMALL, "grid": (16, 16)}
    model.compile_repeated_blocks(backend="toma", options=options)
    assert_near(model(**inputs)[0], plain)
    assert last_report().merged


def test_group_offloading_leaves_the_result_alone() -> None:
    """Hooks cut the graph where they move weights; what is between them merges or is refused."""
    model = flux(**FLUX)
    inputs = flux_inputs(model, 16, 16)
    plain = model(**inputs)[0]
    cpu = torch.device("cpu")
    apply_group_offloading(model, cpu, cpu, offload_type="block_level", num_blocks_per_group=1)
    result = merged(model, inputs, fullgraph=False)
    assert relative(result, plain) < 0.2


@pytest.mark.parametrize("backend", ["flex", "_native_math", "_native_flash"])
def test_attention_backends_of_diffusers(backend: str) -> None:
    model = flux(**FLUX)
    inputs = flux_inputs(model, 16, 16)
    expected = merged(model, inputs)
    other = flux(**FLUX)
    with attention_backend(backend):  # a model's choice becomes that of the process, too
        other.set_attention_backend(backend)
        assert relative(merged(other, inputs), expected) < 1e-4
    assert len(last_report().merged) == 3


def test_masked_prompts() -> None:
    """A mask over words, given as an input, is no obstacle."""
    model = sdxl()
    inputs = sdxl_inputs(model, 32, 32)
    inputs["encoder_attention_mask"] = (torch.arange(77) < 50).float().expand(2, -1)
    plain = model(**inputs)[0]
    assert_near(merged(model, inputs), plain)
    assert len(last_report().merged) == 12


def test_image_prompts() -> None:
    """IP-Adapter's second attention reads the merged queries; its result joins the first's."""
    model = sdxl()
    inputs = sdxl_inputs(model, 32, 32)
    image_prompts(model)
    inputs["added_cond_kwargs"]["image_embeds"] = [torch.randn(2, 1, 24)]
    plain = model(**inputs)[0]
    assert_near(merged(model, inputs), plain)
    kinds = {r.kind for r in last_report().regions if r.status != "merged"}
    assert kinds <= {"cross_attention", "feed_forward"}


def image_prompts(model: Any) -> None:
    """What `load_ip_adapter` does to a UNet, with random weights."""
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
    from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection

    torch.manual_seed(1)
    cross = model.config.cross_attention_dim
    processors = {}
    for name, processor in model.attn_processors.items():
        if name.endswith("attn2.processor"):
            width = model.get_submodule(name.removesuffix(".processor")).to_q.out_features
            processor = IPAdapterAttnProcessor2_0(width, cross, num_tokens=(4,))
        processors[name] = processor
    model.set_attn_processor(processors)
    model.register_to_config(encoder_hid_dim_type="ip_image_proj")
    model.encoder_hid_proj = MultiIPAdapterImageProjection([ImageProjection(24, cross, 4)]).eval()


@pytest.mark.parametrize("config", ["Int8WeightOnlyConfig", "Float8WeightOnlyConfig"])
def test_weights_in_eight_bits_merge(config: str) -> None:
    """As the same weights written out in full."""
    quantization = pytest.importorskip("torchao.quantization")
    model = flux(**FLUX)
    inputs = flux_inputs(model, 16, 16)
    quantization.quantize_(model, getattr(quantization, config)())
    plain, written = model(**inputs)[0], copy.deepcopy(model)
    for linear in written.modules():
        if isinstance(linear, nn.Linear):
            linear.weight = nn.Parameter(linear.weight.dequantize(), requires_grad=False)
    expected = merged(written, inputs)
    torch._dynamo.reset()
    result = merged(model, inputs)
    assert_near(result, plain)
    assert relative(result, expected) < 1e-4
    assert len(last_report().merged) == 3
