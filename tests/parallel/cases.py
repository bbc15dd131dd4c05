"""What each rank runs: small denoisers of diffusers, sharded by its own hooks, plain and merged."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
import torch.nn.functional as F
from diffusers import (
    ContextParallelConfig,
    FluxTransformer2DModel,
    QwenImageTransformer2DModel,
    WanTransformer3DModel,
)
from diffusers.models.attention_dispatch import attention_backend
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import toma_fx
from tests.eager_merge import HandMerge, HandPlan, merged_by_hand
from tests.eager_refresh import HandRefresh, remembered_by_hand
from tests.helpers import Attention
from tests.parallel.ranks import Results
from tests.traced import Traced
from tests.zoo.entries import alive, noise, positions
from toma_fx import TomaConfig
from toma_fx.diffusers import apply, remove
from toma_fx.order import curve_table, order_from_positions
from toma_fx.share import share_of

HEADS, HEAD, WINDOW, WORDS = 4, 8, 4, 8
ROWS, COLUMNS, FRAMES = 16, 8, 2
"""Four ranks have four rows each, and windows of four divide them."""
TOKENS = ROWS * COLUMNS
OPTIONS: dict[str, Any] = {
    "inner_backend": "eager",
    "regions": "all",
    "window": WINDOW,
    "min_tokens": 16,
}
FIELDS = ("regions", "window", "min_tokens")
RATIOS = (0.5, 0.75)
KEYS = {0.5: "all", 0.75: "computed"}
"""Whose keys and values attention sees, where tokens remember."""
TIMES = (0.9, 0.7, 0.5)
"""Steps of one picture."""
_SIZES = {"num_attention_heads": HEADS, "attention_head_dim": HEAD}
_AXES = {"axes_dims_rope": (2, 2, 4)}


@dataclass
class Made:
    """A model and one call of it; `step` is the same call at another time."""

    model: nn.Module
    given: dict[str, Any]

    def step(self, time: float) -> dict[str, Any]:
        return {**self.given, "timestep": torch.full_like(self.given["timestep"], time)}


def flux(words: int = WORDS) -> Made:
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        **_SIZES,
        **_AXES,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        joint_attention_dim=12,
        pooled_projection_dim=8,
    )
    return Made(
        alive(model).eval(),
        {
            "hidden_states": noise(1, TOKENS, 4),
            "encoder_hidden_states": noise(1, words, 12),
            "pooled_projections": noise(1, 8),
            "timestep": torch.full((1,), 0.5),
            "img_ids": positions(ROWS, COLUMNS),
            "txt_ids": torch.zeros(words, 3),
            "return_dict": False,
        },
    )


def qwen() -> Made:
    torch.manual_seed(0)
    model = QwenImageTransformer2DModel(
        **_SIZES,
        **_AXES,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        joint_attention_dim=12,
        patch_size=1,
    )
    return Made(
        alive(model).eval(),
        {
            "hidden_states": noise(1, TOKENS, 4),
            "encoder_hidden_states": noise(1, WORDS, 12),
            "timestep": torch.full((1,), 0.5),
            "img_shapes": [[(1, ROWS, COLUMNS)]],
            "return_dict": False,
        },
    )


def wan() -> Made:
    """Two videos, whose text every rank has whole."""
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        **_SIZES,
        in_channels=4,
        out_channels=4,
        text_dim=12,
        freq_dim=8,
        ffn_dim=32,
        num_layers=1,
        rope_max_seq_len=32,
    )
    return Made(
        alive(model).eval(),
        {
            "hidden_states": noise(2, 4, FRAMES, 2 * ROWS, 2 * COLUMNS),
            "encoder_hidden_states": noise(2, WORDS, 12),
            "timestep": torch.full((2,), 500.0),
            "return_dict": False,
        },
    )


MODELS: dict[str, Callable[[], Made]] = {"flux": flux, "qwen": qwen, "wan": wan}


def shard(model: Any, ranks: int, **more: Any) -> None:
    """As diffusers does it, but for Wan's timestep: its hook warns of it, which breaks the graph.

    Without an axis of tokens nothing of it is cut anyway.
    """
    plan = dict(model._cp_plan)
    if "timestep" in plan.get("", {}):
        del plan[""]
    config = ContextParallelConfig(ulysses_degree=ranks, **more)
    model.enable_parallelism(config=config, cp_plan=plan)


def sent(run: Callable[[], Any]) -> list[int]:
    """Bytes that each all-to-all of a call has sent, in order."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        run()
    return [
        4 * math.prod(event.input_shapes[0])
        for event in seen.events()
        if event.name == "_c10d_functional::all_to_all_single"
    ]


def local_order(ids: Tensor, ranks: int) -> Tensor:
    """The windows of all ranks, one rank after the other, by the places of its own tokens alone."""
    parts = ids.chunk(ranks)
    orders = [order_from_positions(part, WINDOW, "tile", curve_table()) for part in parts]
    return torch.cat([order + rank * len(order) for rank, order in enumerate(orders)])


def far_cells(tokens: int, ranks: int) -> tuple[tuple[int, ...], ...]:
    """Places of tokens, those of another rank so far away that nobody is their neighbour."""
    rows = ROWS // ranks
    return tuple(
        (row % rows + 64 * (row // rows), column)
        for row, column in (divmod(token, COLUMNS) for token in range(tokens))
    )


class SmallWindows(HandMerge):
    """Merges by hand in the windows of `OPTIONS`."""

    def _new(self, entry: Tensor) -> HandPlan:
        return HandPlan(entry, self.sequence_of(entry.shape[1]), self.ratio, WINDOW**2)


@dataclass(frozen=True)
class Cases:
    """How a model is run.

    Attributes:
        alone: ratios at which it is merged in one process as well, in the same windows.
        toma: ratios at which it is merged when it is sharded.
        door: ratios at which it is, by `toma_fx.diffusers.apply`.
        refresh: ratios at which it remembers when it is sharded.
        by_hand: whether one process does both by hand, too.
    """

    alone: tuple[float, ...] = ()
    toma: tuple[float, ...] = (0.0, 0.5)
    door: tuple[float, ...] = ()
    refresh: tuple[float, ...] = ()
    by_hand: bool = False


QUICK = {
    "flux": Cases(toma=(0.0, *RATIOS), refresh=RATIOS, by_hand=True),
    "qwen": Cases(alone=(0.5,)),
    "wan": Cases(alone=(0.5,), toma=(0.0,), door=(0.5,)),
}
LONG = {
    "flux": QUICK["flux"],
    "qwen": Cases(alone=(0.75,), toma=(0.0, 0.75)),
    "wan": Cases(alone=(0.75,), toma=(0.0, 0.75)),
}


def small_models(rank: int, ranks: int, cases: dict[str, Cases]) -> Results:
    """Each model alone and sharded, plain and merged."""
    found = {}
    for name, mine in cases.items():
        made = MODELS[name]()
        alone = _alone(made, ranks, mine) if rank == 0 else {}
        found[name] = alone | _sharded(made, ranks, mine)
    return found


def _alone(made: Made, ranks: int, cases: Cases) -> Results:
    """In one process, which the other ranks wait for."""
    found: Results = {"plain": made.model(**made.given)[0]}
    traced = Traced(made.model)
    for ratio in cases.alone:
        found["alone", ratio] = traced.compiled(**OPTIONS, ratio=ratio)(**made.given)[0]
    if cases.by_hand:
        found["by hand"] = _by_hand(made, ranks)
    return found


def _sharded(made: Made, ranks: int, cases: Cases) -> Results:
    found: Results = {}
    shard(made.model, ranks)
    for ratio in cases.door:  # first: no hook has been called before
        config = TomaConfig(**{name: OPTIONS[name] for name in FIELDS}, ratio=ratio)
        options = {"inner_backend": OPTIONS["inner_backend"]}
        apply(made.model, config, fullgraph=True, options=options)
        found["toma", ratio] = made.model(**made.given)[0]
        found["regions", ratio] = _kinds()
        found["sent", ratio] = sent(lambda: made.model(**made.given))
        remove(made.model)
    found["sharded"] = made.model(**made.given)[0]
    found["sent"] = sent(lambda: made.model(**made.given))
    torch._dynamo.reset()
    traced = Traced(made.model)  # behind a plain call, which lets the hooks know their modules
    for ratio in cases.toma:
        run = traced.compiled(**OPTIONS, ratio=ratio)
        found["toma", ratio] = run(**made.given)[0]
        found["regions", ratio] = _kinds()
        found["sent", ratio] = sent(lambda: run(**made.given))  # noqa: B023 - called at once
    for ratio in cases.refresh:
        options = {"ratio": ratio, "method": "refresh", "scope": "region", "keys": KEYS[ratio]}
        run = traced.compiled(**OPTIONS, **options)
        found["refresh", ratio] = [run(**made.step(time))[0] for time in TIMES]
        found["sent by refresh", ratio] = sent(lambda: run(**made.step(0.1)))  # noqa: B023
    return found


class Uneven(Attention):
    """Attention over the tokens of all ranks, of which each has another number."""

    def __init__(self, counts: list[int]) -> None:
        super().__init__()
        self.counts = counts

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        hidden = self.norm(x)
        layers = (self.query, self.key, self.value)
        return x + self.out(self.attended(*(self.of_all(layer(hidden)) for layer in layers)))

    def of_all(self, x: Tensor) -> Tensor:
        """`[1, N, C]` to `[1, H / ranks, tokens of all ranks, D]`."""
        ranks, own, half = len(self.counts), x.shape[1], x.shape[2] // len(self.counts)
        parts = x.unflatten(-1, (ranks, half)).permute(2, 0, 1, 3).contiguous().flatten()
        received = [count * half for count in self.counts]
        given = funcol.all_to_all_single(parts, received, [own * half] * ranks, dist.group.WORLD)
        return funcol.wait_tensor(given).reshape(1, 1, -1, half)

    def attended(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        half = query.shape[-1]
        whole = F.scaled_dot_product_attention(query, key, value).flatten()
        sizes = [count * half for count in self.counts]
        own = self.counts[dist.get_rank()]
        given = funcol.all_to_all_single(whole, [own * half] * 2, sizes, dist.group.WORLD)
        return funcol.wait_tensor(given).reshape(2, own, half).transpose(0, 1).reshape(1, own, -1)


def refused(rank: int, ranks: int) -> Results:
    """What diffusers cannot cut evenly, or not on a CPU, and a model of its own one level lower."""
    found: Results = {}
    made = flux(words=WORDS - 1)
    shard(made.model, ranks)
    found["plain"] = _error(lambda: made.model(**made.given))
    found["merged"] = _error(lambda: merged(made.model)(**made.given))
    made = flux(words=WORDS - 1)
    shard(made.model, ranks, ulysses_anything=True)
    torch._dynamo.reset()
    found["cut anyhow"] = _error(lambda: made.model(**made.given))
    compiled = torch.compile(made.model, backend="eager")
    found["cut anyhow and compiled"] = _error(lambda: compiled(**made.given))
    made = flux()
    made.model.enable_parallelism(config=ContextParallelConfig(ring_degree=ranks))
    found["ring"] = _error(lambda: made.model(**made.given))
    with attention_backend("_native_flash"):
        found["ring by flash"] = _error(lambda: made.model(**made.given))
    counts = [48, 16]
    model = Uneven(counts).eval()
    x = torch.randn(1, counts[rank], 16, generator=torch.Generator().manual_seed(rank))
    found["lower"] = merged(model)(x), model(x)
    found["reasons"] = toma_fx.last_report().notes
    return found


def _error(run: Callable[[], Any]) -> str:
    try:
        run()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def merged(model: nn.Module) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(model, backend="toma", fullgraph=True, options=OPTIONS)


def _kinds() -> list[tuple[str, str, int, int]]:
    regions = toma_fx.last_report().regions
    return [(r.kind, r.status, r.tokens, r.merged_tokens) for r in regions]


def _by_hand(made: Made, ranks: int) -> Results:
    """Flux in one process, whose windows, or neighbours, are those of each rank."""
    found: Results = {}
    for ratio in RATIOS:
        sequence = local_order(made.given["img_ids"], ranks)
        how = SmallWindows(ratio, "run", lambda n: sequence)  # noqa: B023 - called at once
        with merged_by_hand(made.model, how):
            found["toma", ratio] = made.model(**made.given)[0]
        memory = HandRefresh(share_of(ratio), lambda n: far_cells(n, ranks), KEYS[ratio])
        with remembered_by_hand(made.model, memory) as call:
            memory.begin()
            found["refresh", ratio] = [call(**made.step(time))[0] for time in TIMES]
    return found
