"""Plans without Python: `plan_on_cpu` beside the operation that it stands for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from toma_fx import kernels, reference
from toma_fx.ahead.lower import greedy_loop, lower_plans, plan_on_cpu
from toma_fx.errors import ExportError
from toma_fx.operations import REUSE, SELECT, WEIGH


def random_units(seed: int, windows: int, items: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(windows * items, size, 4, generator=generator)
    return reference.fixed_point(reference.similarity(tokens)).view(windows, items, size, size)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.integers(1, 2), st.integers(1, 9), st.data())
def test_the_loop_picks_what_the_reference_picks(
    seed: int, items: int, size: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, size))
    valid = torch.ones(3, size, dtype=torch.bool)
    valid[2, -1] = False
    units = random_units(seed, 3, items, size)
    for mask in (None, valid):
        expected = reference.greedy(units.clone(), count, mask)
        assert torch.equal(greedy_loop(units, count, mask), expected)


def test_equal_tokens_are_taken_in_their_order() -> None:
    units = torch.full((2, 5, 5), 2**16, dtype=torch.int32)
    assert greedy_loop(units, 3).tolist() == [[0, 1, 2]] * 2


@pytest.mark.parametrize("unmerge", ["transpose", "pinv"])
@pytest.mark.parametrize(("tokens", "pairs"), [(32, True), (30, False)])
def test_every_phase_does_what_the_operation_does(tokens: int, pairs: bool, unmerge: str) -> None:
    """With an order, and with two pads at 30 tokens."""
    hidden = torch.randn(2, tokens, 8)
    order = torch.randperm(tokens)
    order = torch.cat((order[:15], order[14:15], order[15:], order[-1:])) if tokens < 32 else order
    plans = [
        (torch.zeros(2, 2, 6, dtype=torch.int64), torch.zeros(4, 6, 16), torch.zeros(4, 16, 6))
        for _ in range(2)
    ]
    for phase in (SELECT, REUSE, WEIGH):
        for plan, operation in zip(plans, (plan_on_cpu, torch.ops.toma_fx.plan_), strict=True):
            due = torch.tensor(phase, dtype=torch.int32)
            operation(hidden, order, due, *plan, 1e-3, unmerge, pairs)
        for ours, theirs in zip(*plans, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        hidden = hidden + torch.randn(hidden.shape)


def test_half_precision_plans_keep_their_dtype() -> None:
    hidden, phase = torch.randn(1, 32, 8).bfloat16(), torch.tensor(SELECT, dtype=torch.int32)
    plans = []
    for operation in (plan_on_cpu, torch.ops.toma_fx.plan_):
        matrices = (torch.zeros(2, 8, 16).bfloat16(), torch.zeros(2, 16, 8).bfloat16())
        plans.append((torch.zeros(1, 2, 8, dtype=torch.int64), *matrices))
        operation(hidden, None, phase, *plans[-1], 1e-3, "transpose", False)
    assert all(torch.equal(a, b) for a, b in zip(*plans, strict=True))


@pytest.mark.parametrize("unmerge", ["transpose", "pinv"])
@pytest.mark.parametrize("slots", [0, 3])
def test_a_slot_is_written_and_the_others_are_left(slots: int, unmerge: str) -> None:
    sizes = ((2, 2, 6), (4, 6, 16), (4, 16, 6))
    dtypes = (torch.int64, torch.float32, torch.float32)
    plans = [
        [torch.ones(slots or 1, *s, dtype=d) for s, d in zip(sizes, dtypes, strict=True)]
        for _ in range(2)
    ]
    hidden = torch.randn(2, 32, 8)
    for phase in (SELECT, REUSE, WEIGH):
        for plan, operation in zip(plans, (plan_on_cpu, torch.ops.toma_fx.plan_), strict=True):
            slot = torch.tensor([1]) if slots else None
            buffers = plan if slots else [buffer[0] for buffer in plan]
            due = torch.tensor(phase, dtype=torch.int32)
            operation(hidden, None, due, *buffers, 1e-3, unmerge, False, slot)
        for ours, theirs in zip(*plans, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        hidden = hidden + torch.randn(hidden.shape)
    others = [place for place in range(slots) if place != 1]
    assert all((buffer[others] == 1).all() for buffer in plans[0])


class Planned(nn.Module):
    """A plan in the smallest graph there is around it."""

    def __init__(self, batch: int, windows: int, size: int, count: int, slots: int) -> None:
        super().__init__()
        plans = (slots,) if slots else ()
        self.slots = slots
        self.register_buffer("picks", torch.zeros(*plans, batch, windows, count).long())
        self.register_buffer("merge", torch.zeros(*plans, batch * windows, count, size))
        self.register_buffer("back", torch.zeros(*plans, batch * windows, size, count))

    def forward(self, hidden: Tensor, phase: Tensor, slot: Tensor) -> Tensor:
        plan = (self.picks, self.merge, self.back)
        given = slot if self.slots else None
        plan_on_cpu(hidden, None, phase, *plan, 1e-3, "transpose", False, given)
        return self.merge.sum()


@pytest.mark.parametrize("slots", [0, 2])
@pytest.mark.parametrize(
    ("batch", "windows", "size", "count"),
    [(1, 1, 64, 32), (1, 1, 4, 1), (1, 2, 8, 8), (2, 1, 9, 4)],
)
def test_plans_of_any_size_are_exported(
    batch: int, windows: int, size: int, count: int, slots: int
) -> None:
    """Strides of axes with a single element may be anything, and branches must agree in them."""
    hidden = torch.randn(batch, windows * size, 8)
    call = hidden, torch.tensor(SELECT, dtype=torch.int32), torch.tensor([slots - 1])
    model = Planned(batch, windows, size, count, slots)
    with torch.no_grad():
        program = torch.export.export(model, call, strict=False).run_decompositions()
        assert torch.equal(program.module()(*call), model(*call))


def graph_on(device: str) -> torch.fx.GraphModule:
    graph = torch.fx.Graph()
    inputs = [graph.placeholder(name) for name in ("hidden", "phase", "picks", "merge", "back")]
    with FakeTensorMode():
        inputs[0].meta["val"] = torch.empty(1, 4, 2, device=device)
    hidden, phase, *plan = inputs
    arguments = (hidden, None, phase, *plan, 1e-3, "transpose", False)
    graph.call_function(torch.ops.toma_fx.plan_.default, arguments)
    graph.output(())
    return torch.fx.GraphModule(torch.nn.Module(), graph)


def test_lowering_counts_plans_and_knows_its_devices() -> None:
    gm = graph_on("cpu")
    assert lower_plans(gm) == 1
    assert lower_plans(gm) == 0
    with pytest.raises(ExportError, match="no lowering for meta"):
        lower_plans(graph_on("meta"))


@pytest.mark.skipif(not kernels.available(), reason="Triton is not installed")
def test_plans_on_cuda_become_kernels() -> None:
    gm = graph_on("cuda")
    assert lower_plans(gm) == 1
    kernel = torch.ops.toma_fx.plan_kernels_.default
    (node,) = gm.graph.find_nodes(op="call_function", target=kernel)
    assert len(node.args) == 9


def test_plans_on_cuda_need_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toma_fx.ahead.lower.available", lambda: False)
    with pytest.raises(ExportError, match="pip install triton"):
        lower_plans(graph_on("cuda"))
