"""Buffers with a slot for each conditioning: what a call reads and writes of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from toma_fx.passes.graph.emit import Emitter
from toma_fx.passes.graph.nodes import aten
from toma_fx.passes.methods.slots import Moment, SlotBuffer

SIZES = (2, 3)


def remembering(slots: int) -> fx.GraphModule:
    """Adds its input to a buffer, and returns what it held before and after."""
    graph = fx.Graph()
    module = fx.GraphModule(nn.Module(), graph)
    inputs = [graph.placeholder(name) for name in ("value", "slot")]
    mode = FakeTensorMode()
    for node, example in zip(inputs, (torch.zeros(SIZES), torch.zeros(1).long()), strict=True):
        node.meta["val"] = mode.from_tensor(example)
    emit = Emitter(module, graph, mode)
    scalar = inputs[1]  # phase, step and fresh are not read here
    slot = inputs[1] if slots > 1 else None
    moment = Moment(scalar, scalar, scalar, slot, slots)
    device = torch.device("cpu")
    buffer = SlotBuffer(emit, "toma_memory_0", moment, SIZES, torch.float32, device)
    before = emit.call(aten.clone.default, (buffer.read(),))
    assert before.meta["val"].shape == SIZES
    buffer.write(emit.call(aten.add.Tensor, (before, inputs[0])))
    graph.output((before, buffer.read()))
    module.recompile()
    return module


def test_each_slot_remembers_its_own() -> None:
    module = remembering(3)
    held = torch.zeros(3, *SIZES)
    for number, slot in enumerate((0, 2, 2, 0, 1, 2)):
        value = torch.full(SIZES, float(number + 1))
        before, after = module(value, torch.tensor([slot]))
        assert torch.equal(before, held[slot])
        held[slot] += value
        assert torch.equal(after, held[slot])
    assert torch.equal(module.get_buffer("toma_memory_0"), held)


def test_one_slot_is_the_buffer_itself() -> None:
    module = remembering(1)
    called = [node.target for node in module.graph.nodes if node.op == "call_function"]
    assert called == [aten.clone.default, aten.add.Tensor, aten.copy_.default]
    value = torch.ones(SIZES)
    for number in (1, 2):
        _, after = module(value, torch.tensor([0]))
        assert torch.equal(after, number * value)


def test_compiled_code_writes_in_place() -> None:
    module = remembering(2)
    run = torch.compile(module, backend="aot_eager", fullgraph=True)
    results: list[Tensor] = []
    with torch.no_grad():
        for slot in (1, 0, 1):
            results.append(run(torch.ones(SIZES), torch.tensor([slot]))[1])
    assert [float(result.mean()) for result in results] == [1, 1, 2]


def test_a_buffer_that_streams_would_not_park_is_an_error() -> None:
    moment = Moment(*[fx.Graph().placeholder("x")] * 3)
    with pytest.raises(AssertionError, match="would not park"):
        SlotBuffer(None, "memory", moment, SIZES, torch.float32, torch.device("cpu"))  # type: ignore[arg-type]
