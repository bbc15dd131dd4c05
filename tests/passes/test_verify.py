"""The last check: tampered graphs are rejected."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from tests.helpers import SMALL, Block, capture, merged, plain, repeated_tokens
from toma_fx import CannotRewrite, TomaConfig, rewrite
from toma_fx.passes.graph.nodes import aten
from toma_fx.passes.normalize.normalize import normalize
from toma_fx.passes.verify import verify


def graphs() -> tuple[fx.GraphModule, fx.GraphModule]:
    """A normalised graph and its merged one."""
    gm, inputs = capture(Block(), repeated_tokens(2, 64))
    return normalize(gm, inputs), rewrite(gm, inputs, TomaConfig(**SMALL)).graph_module


def output(gm: fx.GraphModule) -> fx.Node:
    return next(iter(gm.graph.find_nodes(op="output")))


def replace_output(gm: fx.GraphModule, change: Callable[[Tensor], Tensor]) -> None:
    node = output(gm)
    old = node.args[0][0]
    with gm.graph.inserting_before(node):
        new = gm.graph.call_function(aten.alias.default, (old,))
    new.meta["val"] = change(old.meta["val"])
    node.args = ((new,),)


def test_an_honest_graph_passes() -> None:
    verify(*graphs())


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value[:, :32],
        lambda value: value.double(),
        lambda value: value.transpose(1, 2).contiguous().transpose(1, 2),
        lambda value: value.unsqueeze(0),
        lambda value: torch.empty_like(value, device="meta"),
    ],
    ids=["shape", "dtype", "stride", "rank", "device"],
)
def test_another_output_is_rejected(change: Callable[[Tensor], Tensor]) -> None:
    before, after = graphs()
    replace_output(after, change)
    with pytest.raises(CannotRewrite, match="an output became"):
        verify(before, after)


def test_an_output_that_is_no_tensor_any_more_is_rejected() -> None:
    before, after = graphs()
    output(after).args = ((None,),)
    with pytest.raises(CannotRewrite, match="an output became"):
        verify(before, after)


def test_other_inputs_are_rejected() -> None:
    before, after = graphs()
    unused = after.graph.find_nodes(op="placeholder")[-1]
    with after.graph.inserting_after(unused):
        after.graph.placeholder("late").meta["val"] = unused.meta["val"]
    with pytest.raises(CannotRewrite, match="other inputs"):
        verify(before, after)


def test_inputs_of_another_shape_are_rejected() -> None:
    before, after = graphs()
    first = after.graph.find_nodes(op="placeholder")[0]
    first.meta["val"] = torch.empty(3, device="meta")
    with pytest.raises(CannotRewrite, match="other inputs"):
        verify(before, after)


def test_a_node_without_a_value_is_rejected() -> None:
    before, after = graphs()
    node = after.graph.find_nodes(op="call_function", target=aten.bmm.default)[0]
    del node.meta["val"]
    with pytest.raises(CannotRewrite, match=f"{node.name} was built without a value"):
        verify(before, after)


def test_a_missing_output_is_rejected() -> None:
    before, after = graphs()
    output(after).args = ((),)
    with pytest.raises(CannotRewrite):
        verify(before, after)


def test_a_node_of_another_graph_is_rejected() -> None:
    before, after = graphs()
    foreign = before.graph.find_nodes(op="call_function", target=aten.gelu.default)[0]
    bmm = after.graph.find_nodes(op="call_function", target=aten.bmm.default)[-1]
    bmm.args = (bmm.args[0], foreign)
    with pytest.raises(CannotRewrite):
        verify(before, after)


class Layouts(nn.Module):
    """A region whose sum takes its strides from the region's result, and a reader of strides."""

    def __init__(self, reader: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.block = Block()
        self.reader = reader

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        b = self.block
        hidden = b.out(b.hidden(b.into(b.norm(x)).relu()).relu())
        hidden = hidden.transpose(1, 2).contiguous().transpose(1, 2)
        result = (hidden + x).sigmoid()
        return result, self.reader(result)


def test_outputs_keep_their_strides() -> None:
    model, x = Layouts(lambda y: y.sum()), repeated_tokens(2, 64)
    run = merged(model, x)
    assert run.output[0].stride() == plain(model, x)[0].stride()


def test_views_that_need_the_old_strides_still_work() -> None:
    """The plain model's view is valid; on other strides it raises at run time."""
    model, x = Layouts(lambda y: y.transpose(1, 2).view(2, -1)), repeated_tokens(2, 64)
    run = merged(model, x)
    assert torch.allclose(run.output[1], plain(model, x)[1], atol=1e-5)


def test_strides_of_single_elements_mean_nothing() -> None:
    """A slice of one item, behind text: its batch stride is that of the longer stream."""

    class Behind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, x: Tensor, text: Tensor) -> Tensor:
            return self.block(torch.cat((text, x), 1))[:, text.shape[1] :]

    for batch in (1, 2):
        x, text = repeated_tokens(batch, 64), torch.randn(batch, 3, 16)
        run = merged(Behind(), x, text, order="tile", grid=(8, 8), window=2)
        assert run.region.status == "merged", run.region.reason


def test_a_stream_with_channels_apart_is_merged() -> None:
    """A picture folded without a copy: its tokens' channels lie far from one another."""
    x = repeated_tokens(2, 64).transpose(1, 2).contiguous().transpose(1, 2)
    run = merged(Block(), x, order="tile", grid=(8, 8), window=2)
    assert run.region.status == "merged", run.region.reason
    assert run.output.stride() == plain(Block(), x).stride()
