"""Merged graphs compute what the reference computes, whatever stands between merge and unmerge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.helpers import (
    CHANNELS,
    HEADS,
    SMALL,
    Attention,
    Block,
    HandMerge,
    Joint,
    Sequence,
    assert_harmless,
    attend,
    capture,
    join_heads,
    merged,
    plain,
    relative_error,
    repeated_tokens,
    rotary,
    rotate,
    split_heads,
    tiled_tokens,
    token_sequence,
)
from toma_fx import TomaConfig, rewrite

# A run of hypothesis is the same on every machine; each example traces and rewrites a model.
PROPERTY = settings(
    deadline=None, max_examples=40, derandomize=True, suppress_health_check=list(HealthCheck)
)
TEXT = 5


@dataclass
class Setting:
    """What an operation may use beside the hidden states.

    Attributes:
        block: holds the parameters.
        gate: `[B, 1, C]`, an input.
        text: `[B, T, C]`, an input.
        rows: reads a table, `[.., L, ..]` with the given token and batch axes, for the tokens
            at hand: as it is at full length, at the destinations on merged tokens.
    """

    block: Stack
    gate: Tensor
    text: Tensor
    rows: Callable[[Tensor, int, int], Tensor] = field(default=lambda table, axis, batch: table)


Operation = Callable[[Setting, Tensor], Tensor]


def heads_by_permute(s: Setting, h: Tensor) -> Tensor:
    parts = h.reshape(h.shape[0], -1, HEADS, CHANNELS // HEADS).permute(0, 2, 1, 3)
    return (parts * s.block.per_head).permute(0, 2, 1, 3).reshape(h.shape[0], -1, CHANNELS)


def heads_by_unflatten(s: Setting, h: Tensor) -> Tensor:
    parts = h.unflatten(-1, (HEADS, -1)).transpose(1, 2)
    return (parts.sigmoid() * parts).transpose(1, 2).flatten(-2)


def rotary_table(s: Setting, h: Tensor) -> Tensor:
    cosines, sines = (s.rows(t[None, None], 2, 0) for t in (s.block.cosines, s.block.sines))
    return join_heads(rotate(split_heads(h), cosines, sines))


def position_product(s: Setting, h: Tensor) -> Tensor:
    return h * s.rows(s.block.positions[None], 1, 0)


def position_sum(s: Setting, h: Tensor) -> Tensor:
    return s.rows(s.block.positions[None], 1, 0) + h


def position_join(s: Setting, h: Tensor) -> Tensor:
    table = s.rows(s.block.positions[None].expand(h.shape[0], -1, -1), 1, 0)
    return s.block.wide(torch.cat((h, table), -1))


def channels_first(s: Setting, h: Tensor) -> Tensor:
    table = s.rows(s.block.positions.t()[None], 2, 0)
    return (h.transpose(1, 2) * table).transpose(1, 2)


def self_attention(s: Setting, h: Tensor) -> Tensor:
    return attend(s.block.first(h), s.block.second(h), h)


def shared_key(s: Setting, h: Tensor) -> Tensor:
    key = s.block.first(h)
    return attend(h, key, key)


def grouped_attention(s: Setting, h: Tensor) -> Tensor:
    query = split_heads(s.block.first(h))
    key = split_heads(h)[:, :1].repeat_interleave(HEADS, 1)
    return join_heads(F.scaled_dot_product_attention(query, key, key))


def cross_attention(s: Setting, h: Tensor) -> Tensor:
    return attend(h, s.block.first(s.text), s.block.second(s.text))


def keys_with_text(s: Setting, h: Tensor) -> Tensor:
    key, value = (torch.cat((part(s.text), part(h)), 1) for part in (s.block.first, s.block.second))
    return attend(h, key, value)


def text_beside(s: Setting, h: Tensor) -> Tensor:
    both = torch.cat((s.block.first(s.text), h), 1)
    _, picture = attend(both, both, both).split([TEXT, both.shape[1] - TEXT], 1)
    return picture


OPERATIONS: dict[str, Operation] = {
    "gelu": lambda s, h: F.gelu(h, approximate="tanh"),
    "silu": lambda s, h: F.silu(h) * 2,
    "tanh": lambda s, h: h.tanh(),
    "cast": lambda s, h: h.float().to(h.dtype),
    "clamp": lambda s, h: h.clamp(-1, 1).contiguous(),
    "dropout in eval": lambda s, h: F.dropout(h, 0.5, training=False),
    "scale": lambda s, h: h * s.block.per_channel,
    "shift": lambda s, h: s.block.per_channel + h,
    "gate": lambda s, h: s.gate * h,
    "modulate": lambda s, h: torch.addcmul(s.gate, h, 1 + s.gate),
    "linear": lambda s, h: s.block.first(h),
    "matmul": lambda s, h: h @ s.block.first.weight,
    "einsum": lambda s, h: torch.einsum("bnc,dc->bnd", h, s.block.first.weight),
    "layer norm": lambda s, h: F.layer_norm(h, (CHANNELS,), s.block.per_channel),
    "rms norm": lambda s, h: F.rms_norm(h, (CHANNELS,), s.block.per_channel, 1e-6),
    "hand-written norm": lambda s, h: h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-3),
    "mean dropped": lambda s, h: h - h.mean(-1).unsqueeze(-1),
    "deviation": lambda s, h: h / (1 + torch.std(h, -1, correction=0, keepdim=True)),
    "softmax": lambda s, h: h.softmax(-1) * 4,
    "head softmax": lambda s, h: h.unflatten(-1, (HEADS, -1)).softmax(2).flatten(2),
    "chunk": lambda s, h: (lambda a, b: torch.cat((b, a), -1))(*h.chunk(2, -1)),
    "split": lambda s, h: (lambda a, b: torch.cat((F.gelu(a), b), 2))(*h.split([4, 12], 2)),
    "gated unit": lambda s, h: F.glu(s.block.wide_out(h)),
    "gated gelu": lambda s, h: (lambda a, b: a * F.gelu(b))(*s.block.wide_out(h).chunk(2, -1)),
    "slice": lambda s, h: torch.cat((h[..., 8:], h[..., :8]), -1),
    "stack": lambda s, h: torch.stack((h, -h), -1).flatten(-2)[..., ::2],
    "unbind": lambda s, h: (lambda a, b: torch.stack((-b, a), -1))(
        *h.unflatten(-1, (-1, 2)).unbind(-1)
    ).flatten(-2),
    "select": lambda s, h: h * h.unflatten(-1, (2, -1)).select(2, 0).mean(-1, True),
    "squeeze": lambda s, h: h.unsqueeze(1).squeeze(1),
    "expand": lambda s, h: h[..., :1].expand(-1, -1, CHANNELS) + h,
    "double transpose": lambda s, h: (h.transpose(1, 2) + 1).transpose(1, 2),
    "heads by permute": heads_by_permute,
    "heads by unflatten": heads_by_unflatten,
    "rotary table": rotary_table,
    "position product": position_product,
    "position sum": position_sum,
    "position join": position_join,
    "channels first": channels_first,
    "self attention": self_attention,
    "shared key": shared_key,
    "grouped attention": grouped_attention,
    "cross attention": cross_attention,
    "keys with text": keys_with_text,
    "text beside": text_beside,
}


class Stack(nn.Module):
    """`x + gate · out(operations(gelu(into(norm(x)))))`."""

    def __init__(self, names: list[str], length: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.operations = [OPERATIONS[name] for name in names]
        self.norm = nn.LayerNorm(CHANNELS)
        self.into, self.hidden, self.out, self.first, self.second = (
            nn.Linear(CHANNELS, CHANNELS) for _ in range(5)
        )
        self.wide = nn.Linear(2 * CHANNELS, CHANNELS)
        self.wide_out = nn.Linear(CHANNELS, 2 * CHANNELS)
        self.per_channel = nn.Parameter(torch.rand(CHANNELS) + 0.5)
        self.per_head = nn.Parameter(torch.rand(HEADS, 1, 1) + 0.5)
        self.positions = nn.Parameter(torch.randn(length, CHANNELS))
        cosines, sines = rotary(length)
        self.register_buffer("cosines", cosines)
        self.register_buffer("sines", sines)

    def function(self, hidden: Tensor, setting: Setting) -> Tensor:
        hidden = self.hidden(F.gelu(self.into(hidden)))
        for operation in self.operations:
            hidden = operation(setting, hidden)
        return setting.gate * self.out(hidden)

    def forward(self, x: Tensor, gate: Tensor, text: Tensor) -> Tensor:
        return x + self.function(self.norm(x), Setting(self, gate, text))


class Model(nn.Module):
    """Stacks over the picture, or over text and picture in one stream."""

    def __init__(self, stacks: list[Stack], ahead: int) -> None:
        super().__init__()
        self.stacks = nn.ModuleList(stacks)
        self.head = nn.Linear(CHANNELS, CHANNELS)
        self.ahead = ahead

    def forward(self, x: Tensor, gate: Tensor, text: Tensor, prompt: Tensor) -> Tensor:
        if self.ahead:
            x = torch.cat((prompt, x), 1)
        for stack in self.stacks:
            x = stack(x, gate, text)
        return self.head(x[:, self.ahead :])

    def by_hand(
        self, inputs: tuple[Tensor, ...], plan: Callable[[Tensor], HandMerge], shared: bool
    ) -> Tensor:
        """The same with merges by the reference."""
        x, gate, text, prompt = inputs
        ahead = self.ahead
        if ahead:
            x = torch.cat((prompt, x), 1)
        hand = None
        for stack in self.stacks:
            hidden = stack.norm(x)
            if hand is None or not shared:
                hand = plan(hidden[:, ahead:])
            short = torch.cat((hidden[:, :ahead], hand.merge(hidden[:, ahead:])), 1)

            def rows(table: Tensor, axis: int, batch: int, hand: HandMerge = hand) -> Tensor:
                return hand.gather(table, axis, batch, ahead)

            short = stack.function(short, Setting(stack, gate, text, rows))
            x = x + torch.cat((short[:, :ahead], hand.unmerge(short[:, ahead:])), 1)
        return self.head(x[:, ahead:])


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    grid = draw(st.sampled_from([(4, 4), (4, 6), (3, 5), (2, 8), (7, 5), (6, 6), (2, 3, 4)]))
    options = {
        "order": draw(st.sampled_from(["tile", "hilbert", "stripe", "global"])),
        "window": draw(st.sampled_from([2, 3])),
        "ratio": draw(st.sampled_from([0.25, 0.5, 0.75])),
        "unmerge": draw(st.sampled_from(["transpose", "pinv"])),
        "share": draw(st.sampled_from(["run", "region"])),
        "grid": grid,
        "min_tokens": 1,
        "temperature": draw(st.sampled_from([1e-3, 0.1])),
    }
    names = draw(st.lists(st.sampled_from(sorted(OPERATIONS)), min_size=1, max_size=6))
    names.sort(key="heads in batch".__eq__)  # no table can be read per item after it
    return {
        "grid": grid,
        "options": options,
        "names": names,
        "batch": draw(st.integers(1, 2)),
        "ahead": draw(st.sampled_from([0, 0, 3])),
        "depth": draw(st.integers(1, 2)),
        "seed": draw(st.integers(0, 99)),
    }


def both_ways(case: dict[str, Any], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """A case's result by the rewrite and by hand."""
    grid, batch, ahead = case["grid"], case["batch"], case["ahead"]
    tokens = torch.Size(grid).numel()
    stacks = [Stack(case["names"], ahead + tokens, case["seed"] + i) for i in range(case["depth"])]
    model = Model(stacks, ahead).to(dtype).eval()
    generator = torch.Generator().manual_seed(case["seed"])
    lengths = (tokens, 1, TEXT, max(ahead, 1))
    inputs = tuple(
        torch.randn(batch, length, CHANNELS, generator=generator).to(dtype) for length in lengths
    )
    config = TomaConfig(**{**SMALL, **case["options"]})
    run = merged(model, *inputs, **case["options"])
    assert len(run.report.merged) == case["depth"], str(run.report)
    sequence, size = token_sequence(config.order, grid, config.window)
    with torch.no_grad():
        wanted = model.by_hand(
            inputs, lambda h: HandMerge(h, sequence, config, size), config.share == "run"
        )
    return run.output, wanted


@PROPERTY
@given(cases())
def test_any_stack_of_operations_equals_the_reference(case: dict[str, Any]) -> None:
    got, wanted = both_ways(case)
    assert relative_error(got, wanted) < 1e-4


@settings(PROPERTY, max_examples=10)
@given(cases())
def test_any_stack_of_operations_equals_the_reference_in_bfloat16(case: dict[str, Any]) -> None:
    case["options"]["unmerge"] = "transpose"  # the inverse of rounded weights is another matrix
    case["options"]["share"] = "run"  # one selection, from hidden states that are equal bit by bit
    got, wanted = both_ways(case, torch.bfloat16)
    assert got.dtype == torch.bfloat16
    assert relative_error(got, wanted) < 3e-2


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_each_operation_equals_the_reference(name: str) -> None:
    """Every operation once, on two items, beside text, in windows with pads."""
    options = {**SMALL, "order": "hilbert", "grid": (3, 5), "window": 2}
    case = {"grid": (3, 5), "options": options, "names": [name], "batch": 2, "ahead": 3}
    got, wanted = both_ways({**case, "depth": 1, "seed": 1})
    assert relative_error(got, wanted) < 1e-4


def test_the_plan_is_made_before_it_is_used() -> None:
    """One planning operation a group, ahead of every product with its matrices."""
    run = merged(Sequence(Attention(), Attention(seed=1), Block()), repeated_tokens(2, 64))
    names = [str(node.target) for node in run.graph.graph.nodes if node.op == "call_function"]
    assert names.count("toma_fx.plan_.default") == 2
    assert names.index("toma_fx.plan_.default") < names.index("aten.bmm.default")
    assert names.count("aten.bmm.default") == 2 * 3


def test_every_call_follows_its_own_tokens() -> None:
    """Buffers hold a plan between calls; what is returned depends on the latest input alone."""
    model, one, two = Block(), torch.randn(2, 64, CHANNELS), torch.randn(2, 64, CHANNELS)
    run = merged(model, one)
    inputs = [two if value.shape == two.shape else value for value in run.inputs]
    with torch.no_grad():
        second = run.graph(*inputs)[0]
        again = run.graph(*run.inputs)[0]
    assert torch.equal(again, run.output)
    assert torch.equal(second, merged(model, two).output)


def test_merging_nodes_carry_the_path_of_their_module() -> None:
    run = merged(Sequence(Block(), Block(seed=1)), repeated_tokens(2, 64))
    for node in run.graph.graph.find_nodes(op="call_function", target=torch.ops.aten.bmm.default):
        assert "blocks" in str(node.meta["nn_module_stack"])


def test_parameters_stay_inputs() -> None:
    """The merged graph has the given one's signature, with what tells parameters apart."""
    run = merged(Block(), repeated_tokens(2, 64))
    given, new = (list(gm.graph.find_nodes(op="placeholder")) for gm in (run.given, run.graph))
    assert len(given) == len(new) == len(run.inputs)
    for old, node in zip(given, new, strict=True):
        assert node.meta.get("tensor_dict") == old.meta.get("tensor_dict")
    assert not list(run.graph.parameters())


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("words", [3, 64])
def test_joint_and_single_blocks_with_rotary_tables(batch: int, words: int) -> None:
    """Text and picture in one stream, tables over both: as many words as tokens or fewer."""
    case = {
        "grid": (8, 8),
        "options": {**SMALL, "order": "tile", "grid": (8, 8)},
        "names": ["rotary table", "self attention", "position sum"],
        "batch": batch,
        "ahead": words,
        "depth": 2,
        "seed": 3,
    }
    got, wanted = both_ways(case)
    assert relative_error(got, wanted) < 1e-4


def test_a_joint_block_whose_text_goes_on() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Joint(), Joint(seed=1)

        def forward(self, x: Tensor, text: Tensor) -> Tensor:
            return self.second(self.first(x, text), text * 2)

    run = merged(Twice(), repeated_tokens(2, 64), torch.randn(2, 64, CHANNELS))
    assert [r.kind for r in run.report.merged] == ["joint_attention"] * 2


# The residual stream in window order: what runs between and after regions.

TILED = {"order": "tile", "grid": (8, 8), "window": 2}
Stream = Callable[["Between", Tensor, Tensor], Tensor]

ALIKE: dict[str, Stream] = {
    "scale": lambda m, y, x: y * m.first.norm.weight,
    "activation": lambda m, y, x: F.silu(y) + 1,
    "linear": lambda m, y, x: m.first.extra(y),
    "norm": lambda m, y, x: m.first.norm(y),
    "input again": lambda m, y, x: y + x,
    "beside the input": lambda m, y, x: torch.stack((y, x), 2).mean(2),
    "item by item": lambda m, y, x: y * y.mean((1, 2), keepdim=True),
    "over items": lambda m, y, x: y - y.mean(),
    "heads": lambda m, y, x: join_heads(split_heads(y).softmax(-1)),
    "channels first": lambda m, y, x: (y.transpose(1, 2) * 2).transpose(1, 2),
    "contiguous": lambda m, y, x: y.permute(0, 2, 1).contiguous().permute(0, 2, 1),
    "cast": lambda m, y, x: y.double().float(),
    "pooled gate": lambda m, y, x: y * y.amax(1, keepdim=True),
    "clone": lambda m, y, x: y.clone(),
    "rows": lambda m, y, x: y.reshape(-1, CHANNELS).sin().view_as(y),
}
PLACED: dict[str, Stream] = {
    **ALIKE,
    "positions": lambda m, y, x: y * m.positions,
    "positions over items": lambda m, y, x: y.transpose(0, 1) + m.positions.unsqueeze(1),
    "cumulated": lambda m, y, x: y.cumsum(1),
    "rolled": lambda m, y, x: y.roll(3, 1),
    "flipped": lambda m, y, x: y.flip(1) * x,
    "softmax": lambda m, y, x: y.softmax(1) * 64,
    "convolved": lambda m, y, x: m.convolution(y.transpose(1, 2).unflatten(2, (8, 8))),
    "picture": lambda m, y, x: y.transpose(1, 2).reshape(y.shape[0], CHANNELS, 8, 8),
    "rows and columns": lambda m, y, x: y.view(-1, 8, 8, CHANNELS).mean(1),
    "halves": lambda m, y, x: torch.cat((y[:, 32:], y[:, :32]), 1) + x,
    "some": lambda m, y, x: y[:, 5::7],
    "one": lambda m, y, x: y[:, 9],
    "pairs": lambda m, y, x: y @ x.transpose(1, 2),
    "attention": lambda m, y, x: attend(y, x, x),
    "causal": lambda m, y, x: attend(y, y, y, is_causal=True),
    "masked": lambda m, y, x: attend(y, y, y, attn_mask=m.positions @ m.positions.t()),
    "where": lambda m, y, x: torch.where(m.positions > 0, y, x),
    "text beside": lambda m, y, x: torch.cat((x[:, :3], y), 1).cumsum(1),
    "by index": lambda m, y, x: y[:, torch.arange(63, -1, -1)],
    "sorted": lambda m, y, x: y.sort(1).values,
}


class Between(nn.Module):
    """Two regions, with operations on the stream before, between and after them."""

    def __init__(self, before: list[str], between: list[str], after: list[str]) -> None:
        super().__init__()
        self.first, self.second = Block(), Attention(seed=1)
        self.convolution = nn.Conv2d(CHANNELS, CHANNELS, 3)
        self.positions = nn.Parameter(torch.randn(64, CHANNELS))
        self.before = [ALIKE[name] for name in before]
        self.between = [ALIKE[name] for name in between]
        self.after = [PLACED[name] for name in after]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = x
        for stream in self.before:
            y = stream(self, y, x)
        y = self.first(y)
        for stream in self.between:
            y = stream(self, y, x)
        y = self.second(y)
        return (y * 2, *(stream(self, y, x) for stream in self.after))


@settings(PROPERTY, max_examples=25)
@given(
    st.lists(st.sampled_from(sorted(ALIKE)), max_size=2),
    st.lists(st.sampled_from(sorted(ALIKE)), max_size=3),
    st.lists(st.sampled_from(sorted(PLACED)), min_size=1, max_size=4),
    st.integers(1, 3),
)
def test_window_order_stays_inside(
    before: list[str], between: list[str], after: list[str], batch: int
) -> None:
    """Whatever reads the stream gets it in the order of the picture."""
    model, x = Between(before, between, after).eval(), tiled_tokens(batch)
    wanted = plain(model, x)
    run = merged(model, x, **TILED)
    for got, expected in zip(run.output, wanted, strict=True):
        assert got.shape == expected.shape
        assert relative_error(got, expected) < 1e-4


@pytest.mark.parametrize("name", sorted(PLACED))
def test_each_reader_of_the_stream_gets_the_natural_order(name: str) -> None:
    model, x = Between([], [], [name]).eval(), tiled_tokens(2)
    wanted = plain(model, x)
    run = merged(model, x, **TILED)
    assert relative_error(run.output[1], wanted[1]) < 1e-4
    assert relative_error(run.output[0], wanted[0]) < 1e-4


class Afterwards(Block):
    """A block, and what `then` makes of its result and its input."""

    def __init__(self, then: Callable[..., Tensor]) -> None:
        super().__init__()
        self.then = then
        self.other = Block(seed=1)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.then(self, super().forward(x), x)


def written_channel(m: Afterwards, y: Tensor, x: Tensor) -> Tensor:
    y[..., 0] = 0
    return m.other(y)


def scaled_channels(m: Afterwards, y: Tensor, x: Tensor) -> Tensor:
    y[..., :4] *= 2
    return m.other(y)


def scaled_by_view(m: Afterwards, y: Tensor, x: Tensor) -> Tensor:
    y.view(-1).mul_(2)
    return m.other(y)


def read_by_view(m: Afterwards, y: Tensor, x: Tensor) -> Tensor:
    view = y.view(2, 64, 2, -1)
    y.mul_(2)
    return m.other(view.flatten(2))


@pytest.mark.parametrize(
    "then",
    [
        written_channel,
        scaled_channels,
        scaled_by_view,
        read_by_view,
        lambda m, y, x: y.mul_(2),
        lambda m, y, x: torch.cat((y, x), 1),
        lambda m, y, x: torch.cat((x, x, y), 1).sin(),
        lambda m, y, x: torch.cat((y, x), 2),
    ],
)
def test_the_stream_after_a_block(then: Callable[..., Tensor]) -> None:
    assert_harmless(Afterwards(then), tiled_tokens(2), **TILED)


@pytest.mark.parametrize("options", [SMALL, TILED], ids=["natural", "tiled"])
def test_writes_to_an_input_reach_the_caller(options: dict[str, Any]) -> None:
    class InPlace(Block):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return x.add_(self.out(self.hidden(self.into(self.norm(x)).relu()))) * 2

    model = InPlace()
    x = tiled_tokens(2) if "grid" in options else repeated_tokens(2, 64)
    wanted = x.clone()
    plain(model, wanted)
    gm, inputs = capture(model, x.clone())
    graph = rewrite(gm, inputs, TomaConfig(**{**SMALL, **options})).graph_module
    mine = x.clone()
    with torch.no_grad():
        graph(*(mine if value.shape == x.shape else value for value in inputs))
    assert relative_error(mine, wanted) < 1e-5


def test_a_stream_that_is_written_to_before_the_sum() -> None:
    class Changed(Block):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            y = x * 1.5
            view = y.view(2, 64, CHANNELS)
            hidden = self.out(self.hidden(self.into(self.norm(y)).relu()))
            view.mul_(3)
            return y + hidden

    assert_harmless(Changed(), tiled_tokens(2), **TILED)
