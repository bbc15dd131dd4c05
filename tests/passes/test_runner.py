"""The runner: times, counts, and catches refusals."""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._dynamo.utils import counters

from tests.helpers import (
    CHANNELS,
    SMALL,
    Attention,
    Block,
    Sequence,
    assert_harmless,
    assert_untouched,
    capture,
    merged,
    plain,
    relative_error,
    repeated_tokens,
)
from toma_fx import TomaConfig, rewrite


def test_every_pass_is_timed() -> None:
    seconds = merged(Block(), repeated_tokens(2, 64)).report.seconds
    assert {"normalize", "find", "plan", "rewrite", "verify"} <= set(seconds)
    assert all(value >= 0 for value in seconds.values())
    untouched = merged(Block(), repeated_tokens(2, 64), ratio=0).report.seconds
    assert "rewrite" not in untouched


def test_merged_regions_and_graphs_are_counted() -> None:
    before = dict(counters["toma_fx"])
    merged(Sequence(Attention(), Block()), repeated_tokens(2, 64))
    merged(Block(), repeated_tokens(2, 64), ratio=0)
    delta = {key: value - before.get(key, 0) for key, value in counters["toma_fx"].items()}
    assert (delta["regions_merged"], delta["graphs_rewritten"]) == (2, 1)


class Unfolds(Block):
    """Looks harmless to the rules, but its literal sizes cannot be met on merged tokens."""

    def __init__(self) -> None:
        super().__init__(lambda block, h: h.unflatten(1, (1, 64)).flatten(1, 2))


def test_a_region_whose_replay_fails_is_dropped_and_the_others_stay() -> None:
    run = assert_harmless(Sequence(Block(), Unfolds(), Block(seed=2)), repeated_tokens(2, 64))
    fates = {region.module_path: region.status for region in reversed(run.report.regions)}
    assert fates["blocks.0"] == fates["blocks.2"] == "merged"
    if fates["blocks.1"] == "refused":  # a rule that rewrites the sizes may merge it one day
        reasons = [r.reason for r in run.report.regions if r.module_path == "blocks.1"]
        assert any("cannot run on merged tokens" in reason for reason in reasons)


def test_where_every_replay_fails_the_graph_is_untouched() -> None:
    def body(block: Block, h: Tensor) -> Tensor:
        return h.unflatten(1, (1, 64)).flatten(1, 2)

    run = merged(Block(body), repeated_tokens(2, 64))
    if run.untouched:
        assert "no region could be rewritten" in run.report.notes
    assert relative_error(run.output, plain(Block(body), repeated_tokens(2, 64))) < 1e-5


def test_the_given_graph_survives_a_rewrite() -> None:
    model, x = Sequence(Attention(), Block()), repeated_tokens(2, 64)
    gm, inputs = capture(model, x)
    code, state = gm.code, dict(gm.named_buffers())
    result = rewrite(gm, inputs, TomaConfig(**SMALL))
    assert result.graph_module is not gm
    assert gm.code == code
    assert dict(gm.named_buffers()) == state
    with torch.no_grad():
        assert torch.equal(gm(*inputs)[0], plain(model, x))


def test_an_empty_graph_and_a_graph_without_regions() -> None:
    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    run = merged(Nothing(), torch.randn(2, 64, CHANNELS))
    assert run.untouched
    assert not run.report.regions
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output((x,))
    gm = fx.GraphModule(nn.Module(), graph)
    assert rewrite(gm, [torch.randn(2, 2)], TomaConfig()).graph_module is gm


def test_an_aten_graph_without_module_paths() -> None:
    """Other compiler stacks bring graphs that Dynamo never saw; parameters are attributes."""
    model, x = Sequence(Attention(), Block()).requires_grad_(False), repeated_tokens(2, 64)
    exported = torch.export.export(model, (x,)).module()
    result = rewrite(exported, [x], TomaConfig(**SMALL))
    if result.report.merged:
        with torch.no_grad():
            (got,) = torch.utils._pytree.tree_leaves(result.graph_module(x))
        assert relative_error(got, plain(model, x)) < 1e-5
    assert len(result.report.regions) >= 2


def test_outputs_in_containers() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, x: Tensor) -> dict[str, object]:
            return {"sample": self.block(x), "parts": (x * 2, [3, None])}

    model, x = Named(), repeated_tokens(2, 64)
    options = {**SMALL, "inner_backend": "eager"}
    torch._dynamo.reset()
    with torch.no_grad():
        got = torch.compile(model, backend="toma", options=options, fullgraph=True)(x)
    wanted = plain(model, x)
    assert relative_error(got["sample"], wanted["sample"]) < 1e-5
    assert torch.equal(got["parts"][0], wanted["parts"][0])
    assert got["parts"][1] == [3, None]


def test_an_active_dropout_next_to_a_clean_region() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.clean, self.noisy = Block(), Block(lambda b, h: F.dropout(h, 0.5, True))

        def forward(self, x: Tensor) -> Tensor:
            return self.noisy(self.clean(x))

    run = merged(Noisy(), repeated_tokens(2, 64))
    fates = {region.module_path: region.status for region in reversed(run.report.regions)}
    assert fates == {"clean": "merged", "noisy": "refused"}


class Errors(logging.Handler):
    """Collects what a logger reports as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def test_no_error_is_logged_for_a_refused_replay() -> None:
    """A refusal is no failure: nothing should look like one."""

    class Expanded(Block):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            hidden = self.out(self.hidden(F.gelu(self.into(self.norm(x[:1])))))
            return x + hidden.expand(2, -1, -1)

    logger, handler = logging.getLogger("torch._subclasses.fake_tensor"), Errors()
    logger.addHandler(handler)
    try:
        run = merged(Expanded(), repeated_tokens(2, 64))
    finally:
        logger.removeHandler(handler)
    assert run.untouched
    assert handler.messages == []


def test_a_config_is_optional() -> None:
    x = torch.randn(1, 256, CHANNELS)
    run = assert_untouched(Block(), x, reason="the grid of the 256 tokens", order="tile")
    gm, inputs = capture(Block(), x)
    assert rewrite(gm, inputs).report.regions[0].reason == run.region.reason
