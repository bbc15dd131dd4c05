from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from toma_fx import kernels, reference
from toma_fx.operations import pad_mask, windowed
from toma_fx.windows import Windows

POISON = 3  # a slot of every window: as a destination it breaks no kernel

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@dataclass
class Plan:
    """Inputs and poisoned buffers of one call."""

    windows: Windows
    batch: int = 2
    dtype: torch.dtype = torch.float32
    temperature: float = 0.05
    unmerge: str = "transpose"
    pairs: bool = False
    channels: int = 24
    device: str = "cpu"
    slots: int = 0  # 0: the buffers are the plan

    def __post_init__(self) -> None:
        torch.manual_seed(self.windows.tokens)
        cut, total = self.windows, self.batch * self.windows.count
        hidden = torch.randn(self.batch, cut.tokens, self.channels)
        self.hidden = hidden.to(self.device, self.dtype)
        ranks = torch.tensor(cut.slot_ranks())
        self.order = torch.randperm(cut.tokens)[ranks].to(self.device)
        self.phase = torch.zeros((), dtype=torch.int32, device=self.device)
        shapes = (cut.destinations, cut.size), (cut.size, cut.destinations)
        plans = (self.slots,) if self.slots else ()
        place = self.slots - 1 if self.slots else slice(None)
        self.slot = torch.full((1,), self.slots - 1, device=self.device) if self.slots else None
        shape = (*plans, self.batch, cut.count, cut.destinations)
        self.buffers_given = [torch.full(shape, POISON, device=self.device)]
        for shape in shapes:
            sizes = (*plans, total, *shape)
            given = torch.full(sizes, POISON, dtype=self.dtype, device=self.device)
            self.buffers_given.append(given)
        self.destinations, self.merging, self.unmerging = (b[place] for b in self.buffers_given)

    def arguments(self) -> tuple[Any, ...]:
        return (
            self.hidden,
            self.order,
            self.phase,
            *self.buffers_given,
            self.temperature,
            self.unmerge,
            self.pairs,
            self.slot,
        )

    def buffers(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.destinations, self.merging, self.unmerging

    def run(self, phase: int) -> None:
        from toma_fx.kernels.plan import plan_cuda

        self.phase.fill_(phase)
        plan_cuda(*self.arguments())

    def expect_picks(self) -> None:
        """The destinations are the reference's, given the similarities that the kernel computes."""
        from toma_fx.kernels.similarity import launch_similarity

        cut = self.windows
        shape = (self.batch * cut.count, cut.size, cut.size)
        similarities = torch.empty(shape, device=self.device)
        launch_similarity(self.hidden, self.order, self.phase, similarities, cut.count)
        units, valid = reference.fixed_point(similarities.cpu()), self.valid("cpu")
        if self.pairs:
            units = torch.stack(units.chunk(2), 1)
            valid = None if valid is None else valid.chunk(2)[0]
        picks = reference.greedy(units, cut.destinations, valid)
        picks = picks.repeat(2, 1) if self.pairs else picks
        assert torch.equal(self.destinations.view_as(picks).cpu(), picks)

    def valid(self, device: str) -> Tensor | None:
        cut = self.windows
        return pad_mask(self.batch, cut.count, cut.size, cut.tokens, torch.device(device))

    def expect_weights(self) -> None:
        """Both matrices are the reference's, given the destinations in their buffer."""
        tokens = windowed(self.hidden, self.order, self.windows.size)
        picks = self.destinations.view(-1, self.windows.destinations)
        weights = reference.assignment(tokens, picks, self.temperature, self.valid(self.device))
        expected = (
            reference.merge_matrix(weights),
            reference.unmerge_matrix(weights, self.unmerge),
        )
        tolerance = {"rtol": 1e-3, "atol": 1e-4} if self.dtype == torch.float32 else {}
        if self.unmerge == "pinv":
            tolerance = {"rtol": 1e-2, "atol": 1e-2}
        for found, value in zip((self.merging, self.unmerging), expected, strict=True):
            torch.testing.assert_close(found, value.to(self.dtype), **tolerance)


def check_phases(make: Callable[..., Plan], device: str) -> None:
    """0 leaves poison alone, 1 weighs the destinations it finds, 2 picks anew."""
    plan = make(device=device)
    before = [buffer.clone() for buffer in plan.buffers()]
    plan.run(0)
    for buffer, poison in zip(plan.buffers(), before, strict=True):
        assert torch.equal(buffer, poison), "phase 0 wrote"
    sorted_picks = torch.arange(plan.windows.destinations, device=plan.device)
    plan.destinations.copy_(sorted_picks.expand_as(plan.destinations))
    plan.run(1)
    assert (plan.destinations == sorted_picks).all(), "phase 1 picked"
    plan.expect_weights()
    plan.hidden.mul_(-1).add_(0.5)  # other tokens, so that kept and new results differ
    plan.run(2)
    plan.expect_picks()
    plan.expect_weights()
    for buffer in plan.buffers_given if plan.slots else ():
        assert (buffer[:-1] == POISON).all(), "another slot was written"


class Driver:
    """Tells Triton of a GPU that is not there: enough to analyse kernels."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


def check_decomposition(unmerge: str, slots: int) -> list[list[str]]:
    """For each kernel that AOTAutograd sees, the arguments that it takes to be written."""
    import triton
    from torch._functorch.aot_autograd import aot_function, make_boxed_func
    from torch._subclasses.fake_tensor import FakeTensorMode

    from toma_fx.kernels.plan import plan_kernels_

    triton.runtime.driver.set_active(Driver())
    written: list[list[str]] = []

    def read(graph: torch.fx.GraphModule, _: Any) -> Any:
        for node in graph.graph.nodes:
            if "triton_kernel_wrapper" in str(node.target):
                written.append(node.kwargs["tensors_to_clone"])
        return make_boxed_func(graph.forward)

    arguments = Plan(Windows(128, 2, 64, 32), unmerge=unmerge, slots=slots).arguments()
    places = [place for place, value in enumerate(arguments) if isinstance(value, Tensor)]
    with FakeTensorMode() as mode, torch.no_grad():
        fake = [mode.from_tensor(arguments[place]) for place in places]

        def planned(*tensors: Tensor) -> Tensor:
            given = list(arguments)
            for place, tensor in zip(places, tensors, strict=True):
                given[place] = tensor
            plan_kernels_(*given)
            return tensors[4] + 1

        aot_function(planned, read)(*fake)
    return written


def check_refusals() -> None:
    from toma_fx.kernels.plan import plan_cuda

    arguments = list(Plan(Windows(32, 2, 16, 8)).arguments())
    wrong: list[tuple[int, Any, str]] = [
        (0, torch.randn(1, 32, 24), "hidden"),
        (1, torch.arange(31), "slots"),
        (1, None, ""),
        (2, torch.tensor(0), "int32"),
        (3, torch.zeros(2, 2, 8, dtype=torch.int32), "int64"),
        (4, torch.zeros(4, 16, 8).transpose(1, 2), "contiguous"),
        (5, torch.zeros(4, 8, 16), "unmerging"),
        (7, "mean", "unmerge"),
    ]
    for place, value, message in wrong:
        changed = [*arguments[:place], value, *arguments[place + 1 :]]
        if message:
            with pytest.raises(ValueError, match=message):
                plan_cuda(*changed)
        else:
            plan_cuda(*changed)
    odd = Plan(Windows(32, 2, 16, 8), batch=1, pairs=True)
    with pytest.raises(ValueError, match="even"):
        plan_cuda(*odd.arguments())
    slotted = Plan(Windows(32, 2, 16, 8), slots=2).arguments()
    with pytest.raises(ValueError, match="as many plans"):
        plan_cuda(*slotted[:4], slotted[4][:1], *slotted[5:])
    with pytest.raises(ValueError, match="one int64"):
        plan_cuda(*slotted[:9], torch.zeros(2, dtype=torch.int64))


PLANS = [
    partial(Plan, Windows(10, 2, 5, 3)),
    partial(Plan, Windows(46, 3, 16, 8)),
    partial(Plan, Windows(46, 3, 16, 8), pairs=True),
    partial(Plan, Windows(32, 2, 16, 8), dtype=torch.bfloat16),
    partial(Plan, Windows(128, 2, 64, 32), temperature=1e-3),
    partial(Plan, Windows(32, 2, 16, 8), unmerge="pinv", pairs=True),
    partial(Plan, Windows(299, 1, 300, 20), batch=1),  # too large for the kernels
    partial(Plan, Windows(300, 1, 300, 20), pairs=True),
    partial(Plan, Windows(46, 3, 16, 8), slots=3),
    partial(Plan, Windows(256, 1, 256, 4), batch=2, pairs=True, slots=2),  # streamed
    partial(Plan, Windows(32, 2, 16, 8), unmerge="pinv", slots=2),
]


@pytest.mark.parametrize("make", PLANS)
def test_three_phases(interpreter: Callable[..., Any], make: Callable[..., Plan]) -> None:
    interpreter(check_phases, make, "cpu")


def test_what_does_not_fit_is_refused(interpreter: Callable[..., Any]) -> None:
    interpreter(check_refusals)


@pytest.mark.parametrize("slots", [0, 2])
@pytest.mark.parametrize("unmerge", ["transpose", "pinv"])
def test_compilers_see_the_kernels(compiler: Callable[..., Any], unmerge: str, slots: int) -> None:
    kernels_of_a_plan = [
        ["similarities"],
        # The analysis follows the picks back to what they were computed from: a workspace, so
        # that nothing is copied for it.
        ["similarities", "destinations"],
        ["merging", "unmerging"],
    ]
    found = compiler(check_decomposition, unmerge, slots)
    assert found == kernels_of_a_plan[: 3 if unmerge == "transpose" else 2]


class Recorder:
    """Stands for a `torch.library.Library`."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def impl(self, *arguments: Any) -> None:
        self.calls.append(arguments)


@pytest.mark.parametrize("available", [False, True])
def test_registers_only_with_triton(monkeypatch: pytest.MonkeyPatch, available: bool) -> None:
    monkeypatch.setattr(kernels, "available", lambda: available)
    recorder = Recorder()
    kernels.register(recorder)
    assert [call[::2] for call in recorder.calls] == [("plan_", "CUDA")] * available


@pytest.fixture
def no_wait() -> Iterator[Callable[[str], None]]:
    yield torch.cuda.set_sync_debug_mode
    torch.cuda.set_sync_debug_mode("default")


ON_GPU = [
    *PLANS,
    partial(Plan, Windows(4096, 64, 64, 32), dtype=torch.bfloat16, channels=640, temperature=1e-3),
    partial(Plan, Windows(4096, 64, 64, 32), dtype=torch.float16, channels=1280, pairs=True),
    partial(Plan, Windows(4090, 16, 256, 128), channels=320, pairs=True),
    partial(Plan, Windows(2048, 16, 128, 96), dtype=torch.bfloat16, channels=3072),
]


def small() -> Plan:
    shape = Windows(1024, 16, 64, 32)
    return Plan(shape, dtype=torch.bfloat16, channels=128, device="cuda")


@needs_gpu
@pytest.mark.parametrize("make", ON_GPU)
def test_three_phases_on_a_gpu(make: Callable[..., Plan]) -> None:
    check_phases(make, "cuda")


@needs_gpu
@pytest.mark.parametrize("make", ON_GPU)
def test_never_waits_for_the_gpu(make: Callable[..., Plan], no_wait: Callable[[str], None]) -> None:
    plan = make(device="cuda")
    plan.run(2)  # compiles
    torch.cuda.synchronize()
    no_wait("error")
    for phase in (0, 1, 2):
        plan.run(phase)


@needs_gpu
def test_one_cuda_graph_serves_all_phases() -> None:
    plan = small()
    plan.run(2)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        torch.ops.toma_fx.plan_kernels_(*plan.arguments())
    for buffer in plan.buffers():
        buffer.fill_(POISON)
    plan.phase.fill_(0)
    graph.replay()
    assert all((buffer == POISON).all() for buffer in plan.buffers())
    plan.hidden.normal_()
    plan.phase.fill_(2)
    graph.replay()
    plan.expect_picks()
    plan.expect_weights()


@needs_gpu
def test_inductor_carries_the_kernels() -> None:
    plan = small()
    plan.run(0)  # defines the operation

    def planned(*arguments: Any) -> None:
        torch.ops.toma_fx.plan_kernels_(*arguments)

    plan.phase.fill_(2)
    with torch.no_grad():
        torch.compile(planned, fullgraph=True)(*plan.arguments())
    plan.expect_picks()
    plan.expect_weights()
