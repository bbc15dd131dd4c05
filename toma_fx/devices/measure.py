"""Rates of the machine at hand, measured once and kept in the user's cache folder."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from toma_fx.devices.profile import DeviceProfile, Rates

_FORMAT = 2  # of the cache file; another number is measured anew


def measure_device(
    device: torch.device | str | None = None, *, again: bool = False
) -> DeviceProfile:
    """Measure a device: about five seconds, once; later calls read the cache.

    Large matrix products, attention, convolutions and batches of small products, in float32 and
    bfloat16; an elementwise kernel for the bandwidth and an empty one for the launch. On a machine
    that does other work at the time the rates come out too low, but in proportion.

    Args:
        device: default CUDA where there is one, else the CPU.
        again: measure even where the cache knows the device.

    Returns:
        A profile; it is written to `$XDG_CACHE_HOME/toma_fx`, by device, threads and torch.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    known = None if again else cached(where)
    if known is not None:
        return known
    with torch.no_grad(), where:
        profile = DeviceProfile(
            name=_name(where),
            half=_rates(torch.bfloat16),
            single=_rates(torch.float32),
            bandwidth=_bandwidth(),
            launch=_launch(),
            packs=where.type == "cpu",
            source=f"measured with torch {torch.__version__}",
        )
    _write(_file(where), {"format": _FORMAT, **dataclasses.asdict(profile)})
    return profile


def cached(device: torch.device) -> DeviceProfile | None:
    """The measurement of an earlier call, if there is one that can be read."""
    try:
        found = json.loads(_file(device).read_text())
        if found.pop("format") != _FORMAT:
            return None
        half, single = Rates(**found.pop("half")), Rates(**found.pop("single"))
        return DeviceProfile(half=half, single=single, **found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _file(device: torch.device) -> Path:
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    threads = f"-{torch.get_num_threads()}" if device.type == "cpu" else ""
    name = f"{_name(device)}{threads}-torch{torch.__version__}.json"
    return Path(folder) / "toma_fx" / name.replace(" ", "_").replace("/", "_")


def _write(file: Path, content: dict[str, object]) -> None:
    """Through a temporary file: two processes may measure at once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_suffix(f".{os.getpid()}")
    scratch.write_text(json.dumps(content, indent=2))
    os.replace(scratch, file)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"this {device.type}"


def _rates(dtype: torch.dtype) -> Rates:
    """FLOP/s of each kind, at the sizes of a diffusion model's middle stage."""
    large = torch.get_default_device().type == "cuda"
    tokens, width = (8192, 2560) if large else (1024, 640)
    x, weight = torch.randn(tokens, width, dtype=dtype), torch.randn(width, width, dtype=dtype)
    heads = torch.randn(2 if large else 1, 10, tokens // 2, 64, dtype=dtype)
    picture = torch.randn(1, 320, *(2 * [128 if large else 48]), dtype=dtype)
    kernel = torch.randn(320, 320, 3, 3, dtype=dtype)
    windows = tokens // 64
    assign, window = torch.randn(windows, 32, 64, dtype=dtype), x.view(windows, 64, width)
    attended = 4 * heads.numel() * heads.shape[2]
    return Rates(
        linear=2 * x.numel() * width / _seconds(lambda: F.linear(x, weight)),
        attention=attended / _seconds(lambda: F.scaled_dot_product_attention(heads, heads, heads)),
        convolution=2
        * picture.numel()
        * 320
        * 9
        / _seconds(lambda: F.conv2d(picture, kernel, padding=1)),
        batched=2 * assign.numel() * width / _seconds(lambda: torch.bmm(assign, window)),
    )


def _bandwidth() -> float:
    """Bytes per second of `gelu`, read and write: more arithmetic than a copy, as fused kernels."""
    x = torch.randn(2**25 if torch.get_default_device().type == "cuda" else 2**22)
    return 2 * x.numel() * x.element_size() / _seconds(lambda: F.gelu(x))


def _launch() -> float:
    """A product so small that its start costs most: threads are woken, on a GPU a kernel queued."""
    x, weight = torch.randn(4, 320), torch.randn(320, 320)
    return _seconds(lambda: F.linear(x, weight), repeats=50)


def _seconds(run: Callable[[], object], repeats: int = 5) -> float:
    """Median over a few warm rounds of `repeats` calls each."""
    wait = torch.cuda.synchronize if torch.get_default_device().type == "cuda" else lambda: None
    run()
    wait()
    found = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        wait()
        found.append((time.perf_counter() - start) / repeats)
    return statistics.median(found)
