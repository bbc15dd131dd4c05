"""Any traced module becomes pre-dispatch ATen; the given one stays as it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from tests.helpers import (
    CHANNELS,
    SMALL,
    Attention,
    Block,
    Sequence,
    assert_harmless,
    capture,
    plain,
    relative_error,
    repeated_tokens,
)
from toma_fx import CannotRewrite, TomaConfig, rewrite
from toma_fx.passes.normalize.normalize import normalize

Function = Callable[..., object]


def targets(gm: fx.GraphModule) -> list[str]:
    return [str(node.target) for node in gm.graph.nodes if node.op == "call_function"]


def traced(function: Function, *args: Tensor) -> fx.GraphModule:
    class Model(nn.Module):
        def forward(self, *inputs: Tensor) -> object:
            return function(*inputs)

    return normalize(*capture(Model(), *args))


def test_composite_operations_stay_whole() -> None:
    gm = normalize(*capture(Sequence(Attention(), Block()), torch.randn(2, 8, CHANNELS)))
    found = targets(gm)
    assert found.count("aten.linear.default") == 7
    assert found.count("aten.layer_norm.default") == 2
    assert found.count("aten.scaled_dot_product_attention.default") == 1
    assert found.count("aten.gelu.default") == 1
    assert all(name.startswith("aten.") for name in found)


def test_the_result_computes_the_same_and_the_given_graph_is_untouched() -> None:
    model, x = Sequence(Attention(), Block()), torch.randn(2, 8, CHANNELS)
    gm, inputs = capture(model, x)
    code, count = gm.code, len(gm.graph.nodes)
    normal = normalize(gm, inputs)
    assert normal is not gm
    assert (gm.code, len(gm.graph.nodes)) == (code, count)
    with torch.no_grad():
        assert torch.equal(normal(*inputs)[0], plain(model, x))


def test_placeholders_keep_their_order_and_metadata() -> None:
    gm, inputs = capture(Block(), torch.randn(2, 8, CHANNELS))
    old, new = (list(g.graph.find_nodes(op="placeholder")) for g in (gm, normalize(gm, inputs)))
    assert len(old) == len(new) == len(inputs)
    for before, after, value in zip(old, new, inputs, strict=True):
        assert after.meta["val"].shape == value.shape
        assert after.meta.get("tensor_dict") == before.meta.get("tensor_dict")
        assert getattr(after, "_dynamo_source", None) is getattr(before, "_dynamo_source", None)


def test_module_paths_survive() -> None:
    gm = normalize(*capture(Sequence(Attention(), Block()), torch.randn(2, 8, CHANNELS)))
    stacks = [node.meta["nn_module_stack"] for node in gm.graph.nodes if node.op == "call_function"]
    paths = {path for stack in stacks for path, _ in stack.values()}
    assert any("blocks" in path and "1" in path and "into" in path for path in paths)


def test_every_node_carries_a_fake_value() -> None:
    gm = normalize(*capture(Block(), torch.randn(2, 8, CHANNELS)))
    for node in gm.graph.nodes:
        if node.op != "output":
            assert node.meta["val"].shape is not None
            assert type(node.meta["val"]).__name__ == "FakeTensor"


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.to(torch.float32).sin(),
        lambda x: x.to("cpu").sin(),
        lambda x: x.type_as(x).sin(),
        lambda x: F.dropout(x, 0.5, training=False).sin(),
        lambda x: F.dropout(x, 0.0, training=True).sin(),
        lambda x: (x / 1).sin(),
        lambda x: (x * 1.0).sin(),
        lambda x: x.float().to(torch.float32).sin(),
    ],
)
def test_operations_that_do_nothing_are_dropped(function: Function) -> None:
    x = torch.randn(3, 4)
    gm = traced(function, x)
    assert targets(gm) == ["aten.sin.default"]
    assert torch.equal(gm(x)[0], x.sin())


@pytest.mark.parametrize(
    ("function", "kept"),
    [
        (lambda x: x * 1, "aten.mul.Tensor"),  # the caller would get its own tensor back
        (lambda x: x.to(torch.float64).sin(), "aten.to.dtype"),
        (lambda x: x.to(torch.float32, copy=True).sin(), "aten.to.dtype"),
        (lambda x: F.dropout(x, 0.5, training=True).sin(), "aten.dropout.default"),
        (lambda x: (x * 2).sin(), "aten.mul.Tensor"),
        (lambda x: (x.long() / 1).sin(), "aten.div.Tensor"),
    ],
)
def test_operations_that_do_something_are_kept(function: Function, kept: str) -> None:
    assert kept in targets(traced(function, torch.randn(3, 4)))


def test_a_copy_whose_view_is_written_to_is_kept() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        y = x * 1
        y.view(-1).add_(1)
        return x + 0, y + 0

    x = torch.zeros(2, 2)
    gm = traced(function, x)
    assert torch.equal(gm(x.clone())[0], torch.zeros(2, 2))


def test_a_change_of_the_memory_format_is_kept() -> None:
    def function(x: Tensor) -> Tensor:
        return x.to(torch.float32, memory_format=torch.channels_last).permute(0, 2, 3, 1).view(-1)

    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(traced(function, x)(x)[0], function(x))


def test_numbers_are_specialised() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor, times: int) -> Tensor:
            return x * times + x.shape[0]

    gms = []

    def backend(gm: fx.GraphModule, inputs: list[object]) -> Callable[..., object]:
        gms.append(normalize(gm, inputs))
        return gm.forward

    torch._dynamo.reset()
    torch.compile(Model(), backend=backend, dynamic=True, fullgraph=True)(torch.randn(6, 4), 3)
    for node in gms[0].graph.nodes:
        for argument in node.args:
            assert not isinstance(argument, torch.SymInt)
        if isinstance(node.meta.get("val"), Tensor):
            assert all(isinstance(size, int) for size in node.meta["val"].shape)


def test_a_new_size_compiles_anew_under_dynamic_shapes() -> None:
    """Sizes that the pass reads become guards, so that no graph serves another size."""
    model = Block()
    options = {**SMALL, "inner_backend": "eager"}
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="toma", options=options, dynamic=True)
    for tokens in (64, 32, 64):
        x = repeated_tokens(2, tokens)
        with torch.no_grad():
            assert relative_error(compiled(x), plain(model, x)) < 1e-5


def broken(x: Tensor) -> Tensor:
    raise RuntimeError("no fake tensors, please")


def test_a_graph_that_cannot_be_traced_is_refused_with_the_reason() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output((graph.call_function(broken, (x,)),))
    gm = fx.GraphModule(nn.Module(), graph)
    with pytest.raises(CannotRewrite, match=r"tracing to ATen failed: .*no fake tensors, please"):
        normalize(gm, [torch.randn(2, 2)])
    result = rewrite(gm, [torch.randn(2, 2)], TomaConfig())
    assert result.graph_module is gm
    assert "no fake tensors, please" in result.report.notes[0]


def test_gradient_modes_inside_the_model_are_harmless() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = x * 2
            return self.block(x)

    assert_harmless(Model(), repeated_tokens(2, 64))


class Autocast(Block):
    """A feed-forward in half precision on a residual stream in full precision."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = self.out(F.gelu(self.into(self.norm(x))))
            if self.whole:
                return x + hidden
        return x + hidden


@pytest.mark.parametrize(
    "whole",
    [
        True,
        False,
    ],
)
def test_autocast_inside_the_model_is_harmless(whole: bool) -> None:
    assert_harmless(Autocast(whole), repeated_tokens(2, 64))


def test_autocast_around_the_model_is_harmless() -> None:
    model, x = Sequence(Block(), Attention()), repeated_tokens(2, 64)
    options = {**SMALL, "inner_backend": "eager"}
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="toma", options=options)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert relative_error(compiled(x), model(x)) < 1e-2
