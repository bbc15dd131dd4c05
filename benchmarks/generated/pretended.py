"""A GPU that is not there: enough of it for Inductor to generate code, which is never run.

Tensors are fake, so that nothing is allocated; Inductor asks a stand-in for the properties of the
device, and what would measure or run something on it is answered without. Attention is taken to be
flash attention, which torch chooses on a GPU and cannot choose without one.
"""

from __future__ import annotations

import ctypes
import functools
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from toma_fx.passes.graph.emit import Emitter

DEVICE = torch.device("cuda", 0)
_H100 = {
    "name": "NVIDIA H100 80GB HBM3",
    "major": 9,
    "minor": 0,
    "multi_processor_count": 132,
    "regs_per_multiprocessor": 65536,
    "max_threads_per_multi_processor": 2048,
    "max_threads_per_block": 1024,
    "shared_memory_per_block_optin": 227 * 2**10,
    "warp_size": 32,
    "L2_cache_size": 50 * 2**20,
    "total_memory": 80 * 2**30,
    "gcnArchName": "",
}
# A device guard that does nothing: torch's CUDA builds set the same one where they find no GPU.
_GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
C10_REGISTER_GUARD_IMPL(CUDA, c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>)
"""
aten = torch.ops.aten


@dataclass
class Lowered:
    """What Inductor made of one graph.

    Attributes:
        graph: Inductor's `GraphLowering`: its scheduler holds every launch.
        code: the Python that would launch them.
        graphs: for each CUDA graph that would be captured, names of inputs: those copied into it at
            every step, and those that it changes though they are copied, which forbids the graph.
    """

    graph: Any
    code: str
    graphs: list[dict[str, list[str]]] = field(default_factory=list)


def lowered(
    model: nn.Module,
    inputs: dict[str, Any],
    compile_graph: Callable[[fx.GraphModule, Sequence[Any]], Any],
) -> list[Lowered]:
    """Trace and compile a model as if it were on a GPU.

    Args:
        model: on the meta device.
        inputs: keyword arguments of a call, on a CPU; their values do not matter.
        compile_graph: a backend of Dynamo that ends in Inductor, `toma_fx.toma_backend` with
            options, say. Inside it there is a GPU.

    Returns:
        One for each graph that Inductor was given.
    """
    _device_guard()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        there = model.to_empty(device=DEVICE)
        arguments = tree_map(lambda value: _moved(value, mode), inputs)
    found: list[Lowered] = []

    def backend(gm: fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        with _pretended(mode, found):
            compile_graph(gm, examples)
        return gm.forward

    torch._dynamo.reset()
    with torch.no_grad(), mode:
        compiled = torch.compile(there, backend=backend, fullgraph=True, dynamic=False)
        compiled(**arguments)
    return found


def _moved(value: Any, mode: FakeTensorMode) -> Any:
    return mode.from_tensor(value).to(DEVICE) if isinstance(value, Tensor) else value


@functools.cache
def _device_guard() -> None:
    """A CPU build of torch cannot even index a fake tensor of another device without a guard."""
    if torch.cuda._is_compiled():
        return
    home = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "guard.cpp", Path(folder) / "guard.so"
        source.write_text(_GUARD)
        include = ["-I", str(home / "include"), "-L", str(home / "lib"), "-lc10"]
        command = ["g++", "-std=c++20", "-shared", "-fPIC", str(source), "-o", str(library)]
        subprocess.run([*command, *include], check=True)
        ctypes.CDLL(str(library))


@contextmanager
def _pretended(mode: FakeTensorMode, found: list[Lowered]) -> Iterator[None]:
    """Inside, Inductor generates for the device and runs nothing."""
    from torch._dynamo import device_interface
    from torch._functorch import config as functorch
    from torch._inductor import compile_fx, config
    from torch._inductor.fx_passes.joint_graph import UniformValueConstantFolder
    from torch._inductor.graph import GraphLowering

    properties = SimpleNamespace(**_H100)
    capability = (properties.major, properties.minor)
    deduce = UniformValueConstantFolder._deduce_value

    def deduce_on_host(self: Any, node: fx.Node) -> Any:
        with _OnHost():
            return deduce(self, node)

    def buffer(self: Emitter, name: str, make: Callable[[], Tensor], kept: bool = False) -> fx.Node:
        with unset_fake_temporarily(), _OnHost():
            table = make()
        with mode:
            value = mode.from_tensor(table).to(DEVICE)
        self.root.register_buffer(name, value)
        node = self.graph.get_attr(name)
        node.meta["val"] = self._mode.from_tensor(value, static_shapes=True)
        return node

    def generate(self: Any) -> Any:
        found.append(Lowered(self, self.codegen()[0].value))
        return SimpleNamespace(call=_absent, __file__="absent", runner=_Runner())

    def cudagraphify(model: Any, static_input_idxs: Sequence[int] = (), **how: Any) -> Any:
        static, names = set(static_input_idxs), [entry.name for entry in how["placeholders"]]
        changed = [names[i] for i in how["mutated_input_idxs"] if i not in static]
        copied = [name for i, name in enumerate(names) if i not in static]
        found[-1].graphs.append({"copied": copied, "changed": changed})
        return model

    device_interface.init_device_reg()
    interfaces = {str(DEVICE): _interface(properties), DEVICE.type: _interface(properties)}
    with ExitStack() as stack:
        for target, name, value in (
            (torch.cuda, "_lazy_init", lambda: None),
            (torch.cuda, "get_device_properties", lambda device=None: properties),
            (torch.cuda, "get_device_capability", lambda device=None: capability),
            (torch.cuda, "current_device", lambda: 0),
            (torch.cuda, "device_count", lambda: 1),
            (UniformValueConstantFolder, "_deduce_value", deduce_on_host),
            (Emitter, "buffer", buffer),
            (GraphLowering, "compile_to_module", generate),
            (compile_fx, "cudagraphify", cudagraphify),
        ):
            stack.enter_context(mock.patch.object(target, name, value))
        stack.enter_context(mock.patch.dict(device_interface.device_interfaces, interfaces))
        stack.enter_context(_flash_attention())
        stack.enter_context(_triton_driver(10 * capability[0] + capability[1]))
        # Padding of products is decided by a measurement.
        stack.enter_context(config.patch(fx_graph_cache=False, shape_padding=False))
        stack.enter_context(functorch.patch(enable_autograd_cache=False))
        yield


def _interface(properties: Any) -> Any:
    from torch._dynamo.device_interface import CudaInterface

    def always(value: Any) -> Any:
        return staticmethod(lambda *_, **__: value)

    answers = {
        "current_device": always(0),
        "get_device_properties": always(properties),
    }
    worker = type("Worker", (CudaInterface.Worker,), answers)
    more = {
        "device_count": always(1),
        "is_available": always(True),
        "get_compute_capability": always(10 * properties.major + properties.minor),
        "is_triton_capable": always(True),
        "raise_if_triton_unavailable": always(None),
        "is_bf16_supported": always(True),
    }
    return type("Pretended", (CudaInterface,), {**answers, **more, "Worker": worker})


class _OnHost(TorchDispatchMode):
    """Constants that Inductor computes while it compiles."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        return func(*args, **kwargs)


class _Runner:
    """Of a module that is not there; Inductor hands each of its parts to CUDA graphs."""

    def __init__(self) -> None:
        self.partitions: list[Any] = []

    def call(self, arguments: Any) -> Any:
        return _absent(arguments)

    def recursively_apply_fns(self, wraps: Sequence[Callable[..., Any]]) -> None:
        for wrap in wraps:
            wrap(None)


def _absent(arguments: Any) -> Any:
    raise RuntimeError("there is no GPU here: this code was generated to be read")


@contextmanager
def _flash_attention() -> Iterator[None]:
    """`scaled_dot_product_attention` without a mask as what a GPU makes of it."""
    operation = aten.scaled_dot_product_attention.default
    key = torch._C.DispatchKey.CompositeImplicitAutograd

    def flash(
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Any:
        given = (query, keys, values)
        if attn_mask is not None or enable_gqa:
            more = {"scale": scale, "enable_gqa": enable_gqa}
            return operation.decompose(*given, attn_mask, dropout_p, is_causal, **more)
        attend = aten._scaled_dot_product_flash_attention
        return attend(*given, dropout_p, is_causal, False, scale=scale)[0]

    with mock.patch.dict(operation.py_kernels, {key: flash}):
        operation._dispatch_cache.clear()
        try:
            yield
        finally:
            operation._dispatch_cache.clear()


@contextmanager
def _triton_driver(capability: int) -> Iterator[None]:
    """What Triton asks of a driver before it compiles anything."""
    from torch.utils._triton import has_triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    stand_in = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", capability, 32),
        get_current_device=lambda: 0,
        get_active_torch_device=lambda: DEVICE,
    )
    with mock.patch.object(driver, "_active", stand_in):
        has_triton.cache_clear()
        try:
            yield
        finally:
            has_triton.cache_clear()
