"""One step under the profiler: how many kernels it launches, and its peak memory.

On a CPU a kernel is an operation that computes, or a loop that Inductor generated (they show
because `cpp.enable_kernel_profile` is on); memory is what torch's allocator handed out, scratch
space of libraries not included. On CUDA the caching allocator tells the peak.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

# Operations that move no data.
_VIEWS = """
    alias as_strided as_strided_ chunk contiguous detach empty empty_like empty_strided expand
    flatten narrow permute reshape resize_ resolve_conj resolve_neg select set_ slice split
    split_with_sizes squeeze swapaxes t to transpose unbind unflatten unsafe_split unsqueeze view
    view_as _reshape_alias _unsafe_view
"""
VIEWS = frozenset(f"aten::{name}" for name in _VIEWS.split())


def profile_step(call: Callable[[], Any], device: torch.device) -> Any:
    """The profile of one call; on CUDA its kernels have finished."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    memory = device.type == "cpu"
    with profile(activities=activities, profile_memory=memory, record_shapes=True) as found:
        call()
        synchronize(device)
    return found


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def kernel_count(found: Any, device: torch.device) -> int:
    """Kernels of a profiled step."""
    events = found.events()
    if device.type == "cuda":
        return sum(is_device_kernel(event) for event in events)
    return sum(_computes(event) for event in events)


def is_device_kernel(event: FunctionEvent) -> bool:
    """A kernel on the device: no copy of memory, and no annotation that spans several."""
    on_device = event.device_type == torch.autograd.DeviceType.CUDA
    named = event.name.startswith(("Memcpy", "Memset", "#", "Torch-Compiled", "ProfilerStep"))
    return on_device and not event.is_user_annotation and not named


def host_peak(found: Any) -> int:
    """Most bytes that tensors of a profiled step held at once, above what rested before it."""
    changes = [
        (event.start_ns(), event.nbytes())
        for event in found.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    held = peak = 0
    for _, change in sorted(changes, key=lambda entry: entry[0]):
        held += change
        peak = max(peak, held)
    return peak


def _computes(event: FunctionEvent) -> bool:
    """The innermost operation that is no view."""
    if "fused" in event.name:
        return True
    if not _is_operation(event) or event.name in VIEWS:
        return False
    inner = (child for child in event.cpu_children if _is_operation(child))
    return all(child.name in VIEWS for child in inner)


def _is_operation(event: FunctionEvent) -> bool:
    return "::" in event.name
