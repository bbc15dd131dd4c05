"""Small models that remember, rewritten from one capture, and calls of whole pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from tests.eager_refresh import HandRefresh, remembered_by_hand
from tests.helpers import capture
from tests.models import flux, flux_inputs, sdxl, sdxl_inputs
from tests.traced import Normal
from toma_fx import Report, TomaConfig
from toma_fx.passes import run_passes
from toma_fx.passes.methods.pace import USUAL, Computes, Pace
from toma_fx.passes.rewrite.lift import kept_by
from toma_fx.share import share_of

Grid = tuple[int, int]
STEPS = 10
OPTIONS: dict[str, Any] = {"method": "refresh", "regions": "all", "min_tokens": 1}


def small_sdxl(**changes: Any) -> nn.Module:
    """One level of SDXL's UNet: four runs of two blocks, on tokens as many as latents."""
    one: dict[str, Any] = {
        "block_out_channels": (32,),
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D",),
        "transformer_layers_per_block": 2,
        "attention_head_dim": 2,
    }
    return sdxl(**{**one, **changes})


def small_flux(**changes: Any) -> nn.Module:
    return flux(**{"num_layers": 1, "num_single_layers": 2, **changes})


@dataclass
class Subject:
    """A model, one call of it, and its graph.

    Attributes:
        model: in eval mode.
        inputs: keyword arguments of a call.
        latents: which of them changes from step to step.
        grid: of its tokens.
    """

    model: nn.Module
    inputs: dict[str, Any]
    latents: str
    grid: Grid

    def __post_init__(self) -> None:
        self.graph, self.given = capture(self.model, **self.inputs)
        self.normal = Normal()

    def cells(self, tokens: int) -> tuple[tuple[int, ...], ...]:
        height, width = self.grid
        assert tokens == height * width
        return tuple((y, x) for y in range(height) for x in range(width))

    def call(self, step: int, picture: int = 0, **changes: Any) -> dict[str, Any]:
        """A call of a picture: its noise differs at every step, and its timestep falls."""
        chance = torch.Generator().manual_seed(1000 * picture + step)
        latents = torch.randn(self.inputs[self.latents].shape, generator=chance)
        time = torch.full_like(self.inputs["timestep"], 0.95 - step / 20)
        return {**self.inputs, self.latents: latents, "timestep": time, **changes}

    def by_hand(self, **settings: Any) -> HandRefresh:
        share = share_of(settings.pop("ratio", 0.5))
        keys, scope = settings.pop("keys", "computed"), settings.pop("scope", "region")
        return HandRefresh(share, self.cells, keys, scope, settings)

    def rewritten(self, pace: Pace = USUAL, **options: Any) -> Rewritten:
        config = TomaConfig(**{**OPTIONS, **options})
        with self.normal.kept():
            result = run_passes(self.graph, self.given, config, pace)
        return Rewritten(self, result.graph_module, result.report)

    def paced(self, **options: Any) -> dict[Computes, Rewritten]:
        """A graph of each pace; they share their memory."""
        made = {one: self.rewritten(Pace(one, rests=True), **options) for one in Computes}
        kept = kept_by(made[Computes.SHARE].graph)
        for one in made.values():
            assert _facts(kept_by(one.graph)) == _facts(kept)
            for name, buffer in kept.items():
                one.graph.register_buffer(name, buffer)
        return made


@dataclass
class Rewritten:
    """The graph on fewer tokens, called by keyword as the model is."""

    subject: Subject
    graph: fx.GraphModule
    report: Report

    def __call__(self, **call: Any) -> Tensor:
        before = _leaves(self.subject.inputs)
        places = {id(value): place for place, value in enumerate(self.subject.given)}
        given = list(self.subject.given)
        for path, value in _leaves(call).items():
            if value is not before[path]:
                given[places[id(before[path])]] = value
        found: Tensor = self.graph(*given)[0]
        return found

    def memory(self) -> int:
        """Bytes of what tokens were, and of the times."""
        buffers = self.graph.named_buffers()
        return sum(b.numel() * b.element_size() for n, b in buffers if n.startswith("toma_memory"))


def _facts(kept: dict[str, Tensor]) -> dict[str, tuple[Any, ...]]:
    return {name: (buffer.shape, buffer.dtype) for name, buffer in kept.items()}


def _leaves(call: dict[str, Any]) -> dict[str, Any]:
    found = torch.utils._pytree.tree_flatten_with_path(call)[0]
    return {torch.utils._pytree.keystr(path): value for path, value in found}


def sdxl_subject(grid: Grid = (9, 7), batch: int = 2, **changes: Any) -> Subject:
    model: Any = small_sdxl(**changes)
    return Subject(model, sdxl_inputs(model, *grid, batch=batch), "sample", grid)


def flux_subject(grid: Grid = (9, 7), batch: int = 1, **changes: Any) -> Subject:
    model: Any = small_flux(**changes)
    return Subject(model, flux_inputs(model, *grid, text=5, batch=batch), "hidden_states", grid)


def pictures(count: int = 2, steps: int = STEPS) -> Iterator[tuple[int, int]]:
    """`(picture, step)` of pictures one after the other."""
    for picture in range(count):
        for step in range(steps):
            yield picture, step


def by_hand(subject: Subject, how: HandRefresh, calls: Sequence[tuple[int, int]]) -> list[Tensor]:
    """What a model remembers by hand, call by call."""
    found = []
    with torch.no_grad(), remembered_by_hand(subject.model, how) as run:
        for picture, step in calls:
            if step == 0:
                how.begin()
            found.append(run(**subject.call(step, picture))[0])
    return found


def worst(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The largest relative difference of two runs."""
    pairs = zip(found, wanted, strict=True)
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


Run = Callable[..., Tensor]
