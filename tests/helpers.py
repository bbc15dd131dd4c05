"""Small models, and ways to run them merged: shared by the tests of the passes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import toma_fx
from toma_fx import RegionReport, Report, TomaConfig, reference
from toma_fx.devices import PROFILES
from toma_fx.order import hilbert_order
from toma_fx.passes.plan.forecast import Predictor
from toma_fx.windows import cut

CHANNELS = 16
HEADS = 2
# Four tokens a window, of which two stay: the smallest plan that has something to choose. At so
# low a temperature every token goes to its nearest destination, however near the next one is.
SMALL: dict[str, Any] = {
    "regions": "all",
    "order": "stripe",
    "window": 2,
    "ratio": 0.5,
    "min_tokens": 1,
    "temperature": 1e-6,
}

predict = Predictor(PROFILES["cpu"])


@dataclass
class Run:
    """A model that was traced, rewritten and called.

    Attributes:
        given: Dynamo's graph.
        graph: what the rewrite returned: `given` where nothing is merged.
        inputs: one per placeholder.
        output: of `graph` on `inputs`.
        report: of the rewrite.
    """

    given: fx.GraphModule
    graph: fx.GraphModule
    inputs: list[Any]
    output: Any
    report: Report

    @property
    def untouched(self) -> bool:
        return self.graph is self.given

    @property
    def region(self) -> RegionReport:
        """The first region; others may begin inside of it."""
        return self.report.regions[0]


def capture(model: nn.Module, *args: Any, **kwargs: Any) -> tuple[fx.GraphModule, list[Any]]:
    """Dynamo's graph of a call, and its inputs."""
    found: list[tuple[fx.GraphModule, list[Any]]] = []

    def backend(gm: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        found.append((gm, list(inputs)))
        return gm.forward

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(model, backend=backend, fullgraph=True, dynamic=False)(*args, **kwargs)
    assert len(found) == 1
    return found[0]


def kinds(report: Report, status: str = "merged") -> Counter[tuple[str, int]]:
    """How many regions of a kind on so many tokens."""
    return Counter((r.kind, r.tokens) for r in report.regions if r.status == status)


def merged(model: nn.Module, *args: Any, **options: Any) -> Run:
    """Rewrite a model's graph and run it; options are fields of `TomaConfig` over `SMALL`."""
    gm, inputs = capture(model, *args)
    result = toma_fx.rewrite(gm, inputs, TomaConfig(**{**SMALL, **options}))
    with torch.no_grad():
        output = result.graph_module(*inputs)
    output = output[0] if len(output) == 1 else output
    return Run(gm, result.graph_module, inputs, output, result.report)


def plain(model: nn.Module, *args: Any) -> Any:
    with torch.no_grad():
        return model(*args)


def repeated_tokens(
    batch: int, tokens: int, channels: int = CHANNELS, *, size: int = 4, seed: int = 0
) -> Tensor:
    """Tokens of which merging half loses nothing: each window of `size` holds every token twice.

    Which of them are equal differs from item to item. A region on merged tokens then has to give
    exactly what it gives at full length, whatever it computes. An operation that lets items or
    tokens meet in a way that merging does not follow shows as a difference.
    """
    generator = torch.Generator().manual_seed(seed)
    half = torch.randn(batch, tokens // size, size // 2, channels, generator=generator)
    windows = half.repeat(1, 1, 2, 1)
    places = torch.rand(batch, tokens // size, size, generator=generator).argsort(-1)
    return windows.take_along_dim(places.unsqueeze(-1), 2).reshape(batch, tokens, channels)


def tiled_tokens(batch: int, side: int = 8, seed: int = 0) -> Tensor:
    """Repeated tokens on a square grid, whose windows are tiles of 2 × 2."""
    flat = repeated_tokens(batch, side * side, seed=seed)
    tokens = torch.empty_like(flat)
    tokens[:, token_sequence("tile", (side, side), 2)[0]] = flat
    return tokens


def relative_error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm().clamp_min(1e-12))


def assert_exact(model: nn.Module, *args: Any, **options: Any) -> Run:
    """The first region is merged, and on repeated tokens nothing is lost."""
    run = assert_harmless(model, *args, **options)
    assert run.region.status == "merged", str(run.report)
    return run


def assert_harmless(model: nn.Module, *args: Any, **options: Any) -> Run:
    """Merged or refused, the result on repeated tokens is the plain model's."""
    wanted = plain(model, *args)
    run = merged(model, *args, **options)
    assert relative_error(run.output, wanted) < 1e-5, str(run.report)
    return run


def assert_untouched(model: nn.Module, *args: Any, reason: str, **options: Any) -> Run:
    """Nothing merges, for the reason given, and the graph comes back as it was."""
    gm, inputs = capture(model, *args)
    before, code = [str(node.format_node()) for node in gm.graph.nodes], gm.code
    result = toma_fx.rewrite(gm, inputs, TomaConfig(**{**SMALL, **options}))
    assert result.graph_module is gm
    assert [str(node.format_node()) for node in gm.graph.nodes] == before
    assert gm.code == code
    assert not result.report.merged
    reasons = [region.reason for region in result.report.regions] + result.report.notes
    assert any(reason in given for given in reasons), f"{reason!r} is not in {reasons}"
    return Run(gm, gm, inputs, None, result.report)


def destinations(run: Run, group: int = 0) -> Tensor:
    """`[B, W, d]` slots that the latest call picked."""
    return run.graph.get_buffer(f"toma_plan_{group}_destinations")


Body = Callable[..., Tensor]


class Block(nn.Module):
    """`x + out(body(hidden(gelu(into(norm(x))))))`: a feed-forward, then what is under test.

    The body gets the block, for its parameters, the hidden states and the other inputs.
    """

    def __init__(self, body: Body | None = None, channels: int = CHANNELS, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = body
        self.norm = nn.LayerNorm(channels)
        self.into = nn.Linear(channels, channels)
        self.hidden = nn.Linear(channels, channels)
        self.extra = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)
        self.eval()

    def forward(self, x: Tensor, *others: Any) -> Tensor:
        hidden = self.hidden(F.gelu(self.into(self.norm(x))))
        if self.body is not None:
            hidden = self.body(self, hidden, *others)
        return x + self.out(hidden)


def split_heads(hidden: Tensor, heads: int = HEADS) -> Tensor:
    """`[B, L, C]` to `[B, H, L, C / H]`."""
    return hidden.view(hidden.shape[0], hidden.shape[1], heads, -1).transpose(1, 2)


def join_heads(hidden: Tensor) -> Tensor:
    return hidden.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """`x + out(attention(q, k, v))`, with the inner attention open to variation.

    `inner(block, query, key, value, *others)` gets projected `[B, L, C]` tensors; keys and values
    come from `context`, where one is given.
    """

    def __init__(self, inner: Body | None = None, channels: int = CHANNELS, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.inner = inner
        self.norm = nn.LayerNorm(channels)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)
        self.eval()

    def forward(self, x: Tensor, *others: Any, context: Tensor | None = None) -> Tensor:
        hidden = self.norm(x)
        source = hidden if context is None else context
        projected = self.query(hidden), self.key(source), self.value(source)
        if self.inner is not None:
            return x + self.out(self.inner(self, *projected, *others))
        return x + self.out(attend(*projected))


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int = HEADS, **options: Any) -> Tensor:
    split = (split_heads(part, heads) for part in (query, key, value))
    return join_heads(F.scaled_dot_product_attention(*split, **options))


class Cross(nn.Module):
    """Attention of a picture to a text."""

    def __init__(self, inner: Body | None = None) -> None:
        super().__init__()
        self.attention = Attention(inner)

    def forward(self, x: Tensor, text: Tensor, *others: Any) -> Tensor:
        return self.attention(x, *others, context=text)


class Joint(nn.Module):
    """Picture and text attend to both, as in Flux's double blocks; text comes first.

    Only the picture is returned, so that the graph tells which of the two it is.
    """

    def __init__(self, channels: int = CHANNELS, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.norm = nn.LayerNorm(channels)
        self.text_norm = nn.LayerNorm(channels)
        self.projections = nn.ModuleList(nn.Linear(channels, channels) for _ in range(6))
        self.out = nn.Linear(channels, channels)
        self.text_out = nn.Linear(channels, channels)
        self.eval()

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        hidden, words = self.norm(x), self.text_norm(text)
        ours, theirs = self.projections[:3], self.projections[3:]
        parts = (torch.cat((b(words), a(hidden)), 1) for a, b in zip(ours, theirs, strict=True))
        both = attend(*parts)
        length = text.shape[1]
        text = text + self.text_out(both[:, :length])
        return x + self.out(both[:, length:]) + text.mean(1, keepdim=True)


class Sequence(nn.Module):
    """Blocks one after the other; further inputs go to each."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, *others: Any) -> Tensor:
        for block in self.blocks:
            x = block(x, *others)
        return x


class Picture(nn.Module):
    """A model over `[B, C, H, W]`: folds the picture into tokens and unfolds them again."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, picture: Tensor, *others: Any) -> Tensor:
        x = picture.flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x, *others)
        return x.transpose(1, 2).reshape(picture.shape)


def rotary(tokens: int, width: int = CHANNELS // HEADS, seed: int = 5) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[tokens, width]` of arbitrary angles."""
    angles = torch.rand(tokens, width, generator=torch.Generator().manual_seed(seed)) * 6
    return angles.cos(), angles.sin()


def rotate(hidden: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    left, right = hidden.chunk(2, -1)
    return hidden * cosines + torch.cat((-right, left), -1) * sines


class HandMerge:
    """Merge and unmerge by the reference mathematics: what a merged graph has to compute.

    Shares with the passes only `toma_fx.reference` and the cut into windows.
    """

    def __init__(self, picture: Tensor, sequence: Tensor, config: TomaConfig, size: int) -> None:
        self.batch, tokens, _ = picture.shape
        self.config = config
        self.windows = cut(tokens, size, config.ratio)
        count, size = self.windows.count, self.windows.size
        self.slots = sequence[torch.tensor(self.windows.slot_ranks())]
        self.valid = torch.ones(self.batch, count, size, dtype=torch.bool)
        self.valid[:, count - self.windows.pads :, -1:] = False
        valid = self.valid.view(-1, size)
        cells = self._windowed(picture)
        kept = self.windows.destinations
        picks = reference.select_destinations(cells, kept, valid)
        self.weights = reference.assignment(cells, picks, config.temperature, valid)
        base = torch.arange(count).view(1, count, 1) * size
        # `[B, D]`: the picture's tokens that stay.
        self.rows = self.slots[(picks.view(self.batch, count, kept) + base).flatten(1)]

    def merge(self, picture: Tensor) -> Tensor:
        cells = reference.merge(self._windowed(picture), self.weights)
        return cells.reshape(self.batch, -1, picture.shape[-1])

    def unmerge(self, hidden: Tensor) -> Tensor:
        cells = hidden.reshape(-1, self.windows.destinations, hidden.shape[-1])
        cells = reference.unmerge(cells, self.weights, self.config.unmerge)
        cells = cells.reshape(self.batch, -1, hidden.shape[-1])
        full = cells.new_empty(self.batch, self.windows.tokens, hidden.shape[-1])
        real = self.valid[0].flatten()
        full[:, self.slots[real]] = cells[:, real]
        return full

    def gather(self, table: Tensor, axis: int, batch: int, before: int = 0) -> Tensor:
        """The rows of a table, along `axis`, that merged tokens stand for; `before` is text."""
        spread = [self.batch if index == batch else -1 for index in range(table.dim())]
        items = table.expand(spread).unbind(batch)
        after = table.shape[axis] - before - self.windows.tokens
        text = torch.arange(before)
        rest = torch.arange(after) + before + self.windows.tokens
        rows = [torch.cat((text, own + before, rest)) for own in self.rows]
        # The batch axis is gone from each item while its rows are read.
        axis -= axis > batch
        picked = [i.index_select(axis, r) for i, r in zip(items, rows, strict=True)]
        return torch.stack(picked, batch)

    def _windowed(self, picture: Tensor) -> Tensor:
        return picture[:, self.slots].reshape(-1, self.windows.size, picture.shape[-1])


def token_sequence(order: str, grid: tuple[int, ...], window: int) -> tuple[Tensor, int]:
    """The token order that a configuration asks for, and how many tokens fill a window."""
    tokens = math.prod(grid)
    if order in ("stripe", "global"):
        return torch.arange(tokens), tokens if order == "global" else window**2
    height, width = (min(window, side) for side in grid[-2:])
    if order == "hilbert" or grid[-2] % height or grid[-1] % width:
        return hilbert_order(grid), height * width
    cells = torch.arange(tokens).view(-1, *grid[-2:])
    tiles = cells.unfold(1, height, height).unfold(2, width, width)
    return tiles.flatten(), height * width
