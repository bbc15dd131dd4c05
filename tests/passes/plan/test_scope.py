"""Blocks that merge once: what a scope computes, and what keeps its regions on their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.helpers import (
    CHANNELS,
    SMALL,
    HandMerge,
    Run,
    Sequence,
    assert_harmless,
    assert_untouched,
    attend,
    capture,
    merged,
    plain,
    relative_error,
    repeated_tokens,
    tiled_tokens,
    token_sequence,
)
from toma_fx import TomaConfig, rewrite
from toma_fx.passes.find.find import find
from toma_fx.passes.find.region import Forecast
from toma_fx.passes.graph.nodes import aten
from toma_fx.passes.layouts.analysis import Analysis
from toma_fx.passes.normalize.normalize import normalize
from toma_fx.passes.plan.plan import plan
from toma_fx.passes.plan.scope import Scopes

Rows = Callable[[Tensor], Tensor]
Stream = Callable[..., Tensor]
BLOCK: dict[str, Any] = {"scope": "block"}
SPAN: dict[str, Any] = {"scope": "span", "span": 2}
TILED: dict[str, Any] = {"order": "tile", "grid": (8, 8), "window": 2}


class Layer(nn.Module):
    """Attention and MLP; `between(layer, x, *others)` runs on the stream between the two."""

    def __init__(self, between: Stream | None = None, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.between = between
        self.norm1, self.norm2 = nn.LayerNorm(CHANNELS), nn.LayerNorm(CHANNELS)
        self.query, self.key, self.value, self.out, self.into, self.back = (
            nn.Linear(CHANNELS, CHANNELS) for _ in range(6)
        )
        self.positions = nn.Parameter(torch.randn(64, CHANNELS))
        self.convolution = nn.Conv1d(CHANNELS, CHANNELS, 3, padding=1)
        self.eval()

    def forward(self, x: Tensor, *others: Any) -> Tensor:
        x = self.attention(x)
        if self.between is not None:
            x = self.between(self, x, *others)
        return self.mlp(x)

    def attention(self, x: Tensor) -> Tensor:
        hidden = self.norm1(x)
        return x + self.out(attend(self.query(hidden), self.key(hidden), self.value(hidden)))

    def mlp(self, x: Tensor) -> Tensor:
        return x + self.back(F.gelu(self.into(self.norm2(x))))


def layers(count: int, *between: Stream | None) -> list[Layer]:
    given = [*between, *(None,) * (count - len(between))]
    return [Layer(stream, seed) for seed, stream in enumerate(given)]


def products(run: Run) -> int:
    """Merges and unmerges: attention is an operation of its own."""
    return len(run.graph.graph.find_nodes(op="call_function", target=aten.bmm.default))


def reasons(run: Run) -> set[str]:
    return {region.reason for region in run.report.merged}


@pytest.mark.parametrize("depth", [1, 3, 4])
def test_a_scope_merges_and_unmerges_once(depth: int) -> None:
    x = repeated_tokens(2, 64)
    for options, count in (({}, 2 * depth), (BLOCK, depth), (SPAN, -(-depth // 2))):
        run = assert_harmless(Sequence(*layers(depth)), x, **options)
        assert products(run) == 2 * count
        assert len(run.report.merged) == 2 * depth
        assert reasons(run) == {""}
    (remark,) = run.report.remarks
    assert remark == f"merged once a span: {-(-depth // 2)} spans over {depth} blocks"


def test_a_scope_is_one_plan_and_two_gathers_a_stage() -> None:
    run = assert_harmless(Sequence(*layers(4)), tiled_tokens(2), **BLOCK, **TILED)
    names = [str(node.target) for node in run.graph.graph.nodes]
    assert names.count("toma_fx.plan_.default") == 1
    assert names.count("aten.index_select.default") == 2


def test_regions_are_the_default_bit_for_bit() -> None:
    model, x = Sequence(*layers(3)), torch.randn(2, 64, CHANNELS)
    run, default = merged(model, x, scope="region"), merged(model, x)
    assert run.graph.code == default.graph.code
    assert torch.equal(run.output, default.output)
    assert not run.report.remarks


def test_ratio_zero_leaves_the_graph_alone() -> None:
    model, x = Sequence(*layers(2)), repeated_tokens(2, 64)
    assert_untouched(model, x, ratio=0, reason="ratio 0 removes no token", **BLOCK)


def test_shape_dtype_and_strides_stay() -> None:
    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Layer().bfloat16()

        def forward(self, x: Tensor) -> Tensor:
            return self.block(x.transpose(1, 2).contiguous().transpose(1, 2)).transpose(1, 2)

    model, x = Folded(), torch.randn(2, 64, CHANNELS, dtype=torch.bfloat16)
    wanted, run = plain(model, x), merged(model, x, **BLOCK)
    assert run.report.remarks
    assert (run.output.dtype, run.output.shape) == (wanted.dtype, wanted.shape)
    assert run.output.stride() == wanted.stride()


# What a scope computes.


def with_table(layer: Layer, x: Tensor, rows: Rows | None = None) -> Tensor:
    return x + (layer.positions if rows is None else rows(layer.positions))


ALIKE: dict[str, Stream | None] = {
    "nothing": None,
    "scale": lambda m, x, *_: x * m.norm1.weight + 1,
    "norm": lambda m, x, *_: m.norm2(x),
    "linear": lambda m, x, *_: x + F.silu(m.into(x)),
    "positions": with_table,
    "channels first": lambda m, x, *_: (x.transpose(1, 2) * 2).transpose(1, 2),
}


class Model(nn.Module):
    """Layers over the picture, or over text and picture in one stream."""

    def __init__(self, blocks: list[Layer], ahead: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.ahead = ahead

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        if self.ahead:
            x = torch.cat((text, x), 1)
        for block in self.blocks:
            x = block(x)
        return x[:, self.ahead :] * 2

    def by_hand(self, x: Tensor, text: Tensor, config: TomaConfig, sequence: Tensor) -> Tensor:
        T, hand = self.ahead, None
        text, step = text[:, :T], config.span if config.scope == "span" else 1
        for start in range(0, len(self.blocks), step):
            if hand is None or config.share == "block":
                hand = HandMerge(x, sequence, config, config.window**2)
            before = short = torch.cat((text, hand.merge(x)), 1)

            def rows(table: Tensor, hand: HandMerge = hand) -> Tensor:
                return hand.gather(table[None], 1, 0, T)

            for block in self.blocks[start : start + step]:
                short = block(short, rows)
            text, x = short[:, :T], x + hand.unmerge((short - before)[:, T:])
        return x * 2


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "scope": draw(st.sampled_from(["block", "span"])),
        "span": draw(st.integers(1, 3)),
        "order": draw(st.sampled_from(["tile", "hilbert", "stripe"])),
        "ratio": draw(st.sampled_from([0.25, 0.5, 0.75])),
        "unmerge": draw(st.sampled_from(["transpose", "pinv"])),
        "grid": draw(st.sampled_from([(4, 6), (7, 5), (3, 5)])),
        "names": draw(st.lists(st.sampled_from(sorted(ALIKE)), min_size=1, max_size=4)),
        "batch": draw(st.integers(1, 2)),
        "ahead": draw(st.sampled_from([0, 3])),
    }


def both_ways(case: dict[str, Any]) -> tuple[Tensor, Tensor, Run]:
    names, batch, ahead = case.pop("names"), case.pop("batch"), case.pop("ahead")
    tokens = torch.Size(case["grid"]).numel()
    blocks = layers(len(names), *(ALIKE[name] for name in names))
    for block in blocks:
        block.positions = nn.Parameter(torch.randn(ahead + tokens, CHANNELS))
    model = Model(blocks, ahead)
    x, text = torch.randn(batch, tokens, CHANNELS), torch.randn(batch, max(ahead, 1), CHANNELS)
    options = {**SMALL, "temperature": 1e-3, **case}
    config = TomaConfig(**options)
    run = merged(model, x, text, **options)
    with torch.no_grad():
        sequence, _ = token_sequence(config.order, config.grid, config.window)
        return run.output, model.by_hand(x, text, config, sequence), run


@settings(deadline=None, max_examples=20, derandomize=True, suppress_health_check=list(HealthCheck))
@given(cases())
def test_any_layers_equal_the_reference(case: dict[str, Any]) -> None:
    torch.manual_seed(1)
    got, wanted, run = both_ways(case)
    assert reasons(run) <= {"", "tiles do not divide 7×5: Hilbert windows"} | {
        "tiles do not divide 3×5: Hilbert windows"
    }
    assert relative_error(got, wanted) < 1e-4


@pytest.mark.parametrize("name", sorted(ALIKE))
def test_each_stream_operation_equals_the_reference(name: str) -> None:
    case = {**SPAN, "grid": (4, 6), "names": [name] * 3, "batch": 2, "ahead": 3}
    got, wanted, run = both_ways(case)
    assert reasons(run) == {""}
    assert relative_error(got, wanted) < 1e-4


def test_a_plan_may_be_the_block_s_own() -> None:
    case = {**BLOCK, "share": "block", "grid": (4, 6), "names": ["nothing"] * 3}
    got, wanted, run = both_ways({**case, "batch": 2, "ahead": 0})
    assert len({region.group for region in run.report.merged}) == 3
    assert relative_error(got, wanted) < 1e-4


def test_the_input_of_a_block_may_be_read_later() -> None:
    """A skip connection wants the stream at full length: there it is."""

    class Skip(Sequence):
        def forward(self, x: Tensor, *others: Any) -> Tensor:
            y = self.blocks[1](self.blocks[0](x))
            return torch.cat((y, x), -1)

    run = assert_harmless(Skip(*layers(2)), tiled_tokens(2), **SPAN, **TILED)
    assert products(run) == 2


# What keeps regions on their own. The numbers stay those of the plain model all the same.


FULL_LENGTH: dict[str, tuple[Stream, str]] = {
    "control": (
        lambda m, x, control: x + control,
        "aten.add.Tensor mixes merged tokens with a full-length activation",
    ),
    "pooled": (
        lambda m, x, _: x * x.mean(1, keepdim=True),
        "aten.mean.dim reduces over the tokens",
    ),
    "convolved": (
        lambda m, x, _: x + m.convolution(x.transpose(1, 2)).transpose(1, 2),
        "aten.conv1d.default mixes tokens",
    ),
    "flipped": (lambda m, x, _: x + x.flip(-1), "no layout rule for aten.flip.default"),
    "written": (lambda m, x, c: m.norm1(x) * c.clamp_(max=1).mean(), "writes in place"),
    "attended": (
        lambda m, x, _: x + attend(x, x, x),
        "the self_attention in it stays at full length",
    ),
    "sizes": (lambda m, x, _: x.unflatten(1, (1, 64)).flatten(1, 2), "cannot run on merged tokens"),
}


@pytest.mark.parametrize("options", [BLOCK, SPAN], ids=["block", "span"])
@pytest.mark.parametrize("name", sorted(FULL_LENGTH))
def test_a_stream_that_is_needed_at_full_length(name: str, options: dict[str, Any]) -> None:
    """Its regions merge on their own, as they do without scopes, and say why."""
    between, why = FULL_LENGTH[name]
    model, x, control = Layer(between), repeated_tokens(2, 64), torch.randn(2, 64, CHANNELS)
    run, regions = merged(model, x, control, **options), merged(model, x, control)
    assert run.graph.code == regions.graph.code
    (reason,) = reasons(run)
    assert reason.startswith("scope: ")
    assert why in reason
    assert reason.endswith("; merged region by region")


@pytest.mark.parametrize("options", [BLOCK, SPAN], ids=["block", "span"])
@pytest.mark.parametrize("name", ["flipped", "written", "sizes"])
def test_the_blocks_around_it_keep_their_scopes(name: str, options: dict[str, Any]) -> None:
    between, _ = FULL_LENGTH[name]
    blocks = Sequence(*layers(3, None, between))
    run = assert_harmless(blocks, tiled_tokens(2), torch.ones(1), **options, **TILED)
    assert len(run.report.merged) == 6, str(run.report)
    assert products(run) == 2 * (1 + 2 + 1)


def test_a_span_that_is_refused_merges_block_by_block() -> None:
    class Controlled(Sequence):
        def forward(self, x: Tensor, *others: Any) -> Tensor:
            for block in self.blocks:
                x = block(x) + others[0]
            return x

    model, x, control = Controlled(*layers(4)), tiled_tokens(2), torch.randn(2, 64, CHANNELS)
    run, blocks = (merged(model, x, control, **scope, **TILED) for scope in (SPAN, BLOCK))
    assert run.graph.code == blocks.graph.code
    assert products(run) == 2 * 4
    (reason,) = reasons(run)
    assert reason.endswith("with a full-length activation; merged block by block")


@pytest.mark.parametrize("options", [BLOCK, SPAN], ids=["block", "span"])
def test_what_is_inside_may_not_be_returned(options: dict[str, Any]) -> None:
    class Shows(Layer):
        def forward(self, x: Tensor, *others: Any) -> Any:
            y = self.attention(x)
            return self.mlp(y), y

    x = repeated_tokens(2, 64)
    wanted, run = plain(Shows(), x), merged(Shows(), x, **options)
    for got, expected in zip(run.output, wanted, strict=True):
        assert relative_error(got, expected) < 1e-5
    assert products(run) == 4
    assert any("the graph's output reads" in r or "after the end" in r for r in reasons(run))


@pytest.mark.parametrize(
    "choice",
    [{"exclude": "*blocks.1*"}, {"skip_blocks": 1}, {"regions": ("self_attention",)}],
    ids=str,
)
def test_a_region_that_stays_at_full_length_keeps_its_block_apart(choice: dict[str, Any]) -> None:
    for options in (BLOCK, SPAN):
        run = assert_harmless(Sequence(*layers(3)), repeated_tokens(2, 64), **options, **choice)
        left = {r.module_path for r in run.report.regions if r.status == "skipped"}
        assert left
        if "regions" in choice:
            assert products(run) == 2 * 3
            assert all("feed_forward in it stays at full length" in r for r in reasons(run))
        elif "exclude" in choice:
            assert products(run) == 2 * 2
        else:
            assert products(run) == (2 if options is SPAN else 4)


def test_a_block_that_is_called_twice_is_two_blocks() -> None:
    block = Layer()
    run = assert_harmless(Sequence(block, block, block), repeated_tokens(2, 64), **BLOCK)
    assert run.report.remarks == ["merged once a block: 3 blocks"]


def test_a_block_on_its_own_is_a_block() -> None:
    """As `compile_repeated_blocks` compiles it: the root module is the block."""
    run = assert_harmless(Layer(), repeated_tokens(2, 64), **BLOCK)
    assert run.report.remarks == ["merged once a block: 1 blocks"]
    assert products(run) == 2


def test_attention_in_a_row_in_one_forward_is_not_one_block() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(layers(3))

        def forward(self, x: Tensor) -> Tensor:
            for part in self.parts:
                hidden = part.norm1(x)
                x = x + part.out(attend(part.query(hidden), part.key(hidden), part.value(hidden)))
            return x

    run = assert_harmless(Flat(), repeated_tokens(2, 64), **BLOCK)
    assert products(run) == 2 * 3


# What it is worth, and who decides.


class Judged:
    """Gains of attention and losses of an MLP, or the other way round."""

    def __init__(self, attention: float, mlp: float) -> None:
        self.after = {"self_attention": attention, "feed_forward": mlp}

    def __call__(self, region: Any, windows: Any) -> Forecast:
        return Forecast(1.0, self.after[region.kind])


def planned(judge: Any, **options: Any) -> list[Any]:
    gm, inputs = capture(Sequence(*layers(2)), repeated_tokens(2, 64))
    normal = normalize(gm, inputs)
    analysis = Analysis(normal)
    config = TomaConfig(**{**SMALL, "regions": "auto", **options})
    regions = find(analysis, config.grid)
    plan(regions, config, judge, Scopes(analysis, regions, config).widen)
    return regions


@pytest.mark.parametrize("options", [BLOCK, SPAN], ids=["block", "span"])
def test_a_block_is_judged_as_a_whole(options: dict[str, Any]) -> None:
    gains = planned(Judged(0.5, 1.1), **options)
    assert {region.status for region in gains} == {"merged"}
    loses = planned(Judged(0.9, 1.2), **options)
    assert {region.status for region in loses} == {"skipped"}
    assert all(region.reason.startswith("merging gains nothing") for region in loses)
    alone = planned(Judged(0.9, 1.2))
    assert [region.status for region in alone] == ["merged", "skipped"] * 2


def test_merging_counts_once_a_scope() -> None:
    model, x = Sequence(*layers(4)), repeated_tokens(2, 64)
    gm, inputs = capture(model, x)
    reports = [
        rewrite(gm, inputs, TomaConfig(**{**SMALL, **options})).report
        for options in ({}, BLOCK, SPAN)
    ]
    by_region, by_block, by_span = (report.flops_after for report in reports)
    once = 2 * 2 * (2 * 64 // 2) * 4 * CHANNELS  # a merge and an unmerge
    assert by_region - by_block == 4 * once
    assert by_block - by_span == 2 * once
