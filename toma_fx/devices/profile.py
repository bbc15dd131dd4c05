"""Rates of devices, as far as a prediction needs them."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Rates:
    """FLOP/s that large operations of one precision sustain.

    Attributes:
        linear: matrix products of tokens with weights.
        attention: fused attention, counted as its two products.
        convolution: two-dimensional convolutions.
        batched: the small products of merging and unmerging.
    """

    linear: float
    attention: float
    convolution: float
    batched: float


@dataclass(frozen=True)
class DeviceProfile:
    """What a prediction knows of a device.

    Attributes:
        name: as on the command line.
        half: rates in bfloat16 and float16.
        single: rates in float32.
        bandwidth: bytes per second of elementwise kernels.
        launch: seconds that every kernel costs beside its work.
        source: where the numbers come from.
        packs: whether products rearrange their weights at every call, as CPU libraries do.
    """

    name: str
    half: Rates
    single: Rates
    bandwidth: float
    launch: float
    source: str
    packs: bool = False

    def rates(self, dtype: torch.dtype) -> Rates:
        """The rates of a precision; float64 counts as float32."""
        return self.half if dtype.itemsize == 2 else self.single


# The share of a data sheet's dense peak that compiled kernels sustain on diffusion transformers:
# large products about two thirds, FlashAttention a half (arXiv 2307.08691, 2407.08608 measure
# 0.35–0.75), convolutions less, batches of 64×64 products little. Assumptions, not measurements:
# `measure_device` replaces them.
_SUSTAINED = Rates(linear=0.65, attention=0.5, convolution=0.45, batched=0.25)


def _gpu(name: str, half: float, single: float, bandwidth: float, sheet: str) -> DeviceProfile:
    """From a data sheet: dense TFLOP/s of the tensor cores, of float32, and GB/s."""

    def sustained(peak: float) -> Rates:
        shares = (_SUSTAINED.linear, _SUSTAINED.attention, _SUSTAINED.convolution)
        return Rates(*(share * peak * 1e12 for share in (*shares, _SUSTAINED.batched)))

    source = f"{sheet}: {half:g} TFLOP/s dense half precision, {bandwidth:g} GB/s"
    bytes_a_second = 0.8 * bandwidth * 1e9
    return DeviceProfile(name, sustained(half), sustained(single), bytes_a_second, 2e-6, source)


def _same(rate: float) -> Rates:
    return Rates(rate, rate, rate, rate)


PROFILES: dict[str, DeviceProfile] = {
    profile.name: profile
    for profile in (
        _gpu("v100", 125, 15.7, 900, "NVIDIA V100 data sheet (SXM2)"),
        _gpu("rtx8000", 130.5, 16.3, 672, "NVIDIA Quadro RTX 8000 data sheet"),
        _gpu("rtx6000ada", 364.2, 91.1, 960, "NVIDIA RTX 6000 Ada data sheet"),
        _gpu("a100", 312, 19.5, 2039, "NVIDIA A100 data sheet (SXM, 80 GB)"),
        _gpu("rtx4090", 165.2, 82.6, 1008, "NVIDIA Ada architecture white paper"),
        _gpu("h100", 989.4, 66.9, 3350, "NVIDIA H100 data sheet (SXM)"),
        _gpu("h200", 989.4, 66.9, 4800, "NVIDIA H200 data sheet (SXM)"),
        DeviceProfile(
            "cpu",
            Rates(1.2e11, 0.6e11, 0.9e11, 0.5e11),
            Rates(1.2e11, 0.6e11, 0.9e11, 0.5e11),
            1.5e10,
            1e-5,
            "two cores of a server with AVX-512, rounded; measure_device() knows better",
            packs=True,
        ),
    )
}
"""The devices that ship, by name."""

MARKS = {
    "v100": ("V100",),
    "rtx8000": ("RTX 8000",),
    "rtx6000ada": ("RTX 6000 Ada",),
    "a100": ("A100",),
    "rtx4090": ("RTX 4090",),
    "h100": ("H100",),
    "h200": ("H200",),
}
"""What a GPU's name holds, by the name of its profile."""
