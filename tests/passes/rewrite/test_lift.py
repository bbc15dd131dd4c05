"""What a graph keeps becomes inputs of it, and nothing else changes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

import toma_fx
from tests.helpers import capture
from tests.tiny import OPTIONS, Tiny, inputs
from toma_fx import TomaConfig
from toma_fx.guard import COLD, FRESH, SELECTIONS, cold_tally, notice
from toma_fx.operations import REUSE, SELECT, WEIGH
from toma_fx.passes.graph.outside import Outside
from toma_fx.passes.methods.slots import MOMENT
from toma_fx.passes.rewrite.lift import STATE, kept_by, lift
from toma_fx.passes.runner import run_passes

CONFIG = TomaConfig(**{key: OPTIONS[key] for key in OPTIONS if key != "inner_backend"})


def test_a_lifted_graph_computes_the_same_on_what_it_is_handed() -> None:
    gm, given = capture(Tiny(), *inputs(9))
    graph = toma_fx.rewrite(gm, given, CONFIG).graph_module
    plain = graph.graph.find_nodes(op="placeholder")
    other = copy.deepcopy(graph)
    lifted = lift(other)
    assert set(lifted.kept) == set(kept_by(graph)) >= set(lifted.names)
    assert not lifted.moment
    placeholders = other.graph.find_nodes(op="placeholder")
    added = placeholders[len(plain) :]
    assert tuple(node.target for node in added) == lifted.names
    assert all(node.meta["tensor_dict"]["_dynamo_static_input_type"] for node in added)
    assert [tuple(example.shape) for example in lifted.examples] == [
        tuple(lifted.kept[name].shape) for name in lifted.names
    ]
    assert not [name for name, _ in other.named_buffers() if name.startswith((*STATE, MOMENT))]
    for _ in range(2):
        with torch.no_grad():
            expected = graph(*given)[0]
            found = other(*given, *[lifted.kept[name] for name in lifted.names])[0]
        assert torch.equal(found, expected)
    for name, buffer in kept_by(graph).items():
        assert torch.equal(buffer, lifted.kept[name])


def test_cuda_graphs_find_what_is_kept_where_it_is() -> None:
    """Inductor records no graph that writes into inputs, but for those known to stay in place."""
    seen: list[tuple[set[int], set[int], int]] = []

    def look(gm: torch.fx.GraphModule, given: list[Any]) -> Any:
        facts = torch._guards.TracingContext.get().fw_metadata
        written = set(facts.mutated_inp_runtime_indices)
        seen.append((set(facts.static_input_indices), written, len(given)))
        return make_boxed_func(gm)

    model, given = Tiny(), inputs(9)
    inner = aot_autograd(fw_compiler=look, inference_compiler=look)
    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(model, backend="toma", options={**OPTIONS, "inner_backend": inner})(*given)
    ((static, written, count),) = seen
    assert written
    assert written <= static
    assert count - len(static) == len(given)  # what a call brings is copied to where it was


def test_the_moment_is_an_input_that_nobody_writes() -> None:
    gm, given = capture(Tiny(), *inputs(9))
    graph = run_passes(gm, given, CONFIG, outside=Outside(followed=True)).graph_module
    lifted = lift(graph)
    assert set(lifted.moment) == {f"{MOMENT}told", f"{MOMENT}slot"}
    written = {n.args[0] for n in graph.graph.nodes if "copy_" in str(n.target)}
    assert not any(node.target in lifted.moment for node in written)


def test_a_part_notices_what_it_has_missed() -> None:
    seen, tally = torch.zeros(2, 3, dtype=torch.int64), cold_tally(torch.device("cpu"))
    slot = torch.tensor([1])
    told = [(5, 5, 5, 0), (5, 5, 5, 1), (5, 5, 7, 2), (5, 8, 8, 3), (9, 9, 9, 0), (9, 9, 9, 0)]
    wanted = [
        (SELECT, True),
        (REUSE, False),
        (WEIGH, False),
        (SELECT, False),
        (SELECT, True),
        (REUSE, False),
    ]
    for row, (phase, fresh) in zip(told, wanted, strict=True):
        found = notice(seen, tally, torch.tensor(row), slot)
        assert (int(found[0]), int(found[1]), bool(found[2])) == (phase, row[3], fresh)
        assert torch.equal(found[4], tally)
        seen[1] = found[3]
    assert seen.tolist() == [[0, 0, 0], [9, 9, 9]]
    found = notice(seen, tally, torch.tensor([-1, -1, -1, 0]), slot)
    assert (int(found[0]), bool(found[2]), found[3].tolist()) == (SELECT, True, [0, 0, 0])
    assert (found[4][SELECTIONS], found[4][FRESH]) == (1, COLD)
