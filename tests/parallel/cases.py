"""What each rank runs: small denoisers of diffusers, sharded by its own hooks, plain and merged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import toma_fx
from tests.eager_merge import HandMerge, HandPlan, merged_by_hand
from tests.eager_refresh import HandRefresh, remembered_by_hand
from tests.parallel import pipes, uneven
from tests.parallel.models import COLUMNS, MODELS, RING, ROWS, ULYSSES, UNIFIED, Made, shard
from tests.parallel.ranks import Results
from tests.parallel.rings import rings_on_a_cpu
from tests.parallel.settings import OPTIONS, RATIOS, TIMES, WINDOW, remembering
from tests.traced import Traced
from toma_fx import TomaConfig, recall, rotation
from toma_fx.diffusers import apply, remove
from toma_fx.order import curve_table, order_from_positions
from toma_fx.share import share_of


def local_order(ids: Tensor, ranks: int) -> Tensor:
    """The windows of all ranks, one rank after the other, by the places of its own tokens alone."""
    parts = ids.chunk(ranks)
    orders = [order_from_positions(part, WINDOW, "tile", curve_table()) for part in parts]
    return torch.cat([order + rank * len(order) for rank, order in enumerate(orders)])


def far_cells(grid: Sequence[int], ranks: int) -> Tensor:
    """`[N, k]` places of tokens, those of another rank so far away that none is a neighbour.

    Of a video no rank has rows of two frames. Cells are looked up by their number, modulo that of
    all tokens: rows of another rank are whole grids, and its own place in one, away.
    """
    *frames, height, width = grid
    total = math.prod((*frames, height))
    own = total // ranks
    row, column = torch.arange(total * width) // width, torch.arange(total * width) % width
    away = row % own + (2 * total + own) * (row // own)
    return torch.stack((*(torch.zeros_like(row) for _ in frames), away, column), 1)


@contextmanager
def neighbours_of_a_rank(ranks: int) -> Iterator[None]:
    """One process remembers as several ranks do: no token hears of another rank's."""
    recall.every_table.cache_clear()
    with mock.patch.object(rotation, "grid_cells", lambda grid: far_cells(grid, ranks)):
        yield
    recall.every_table.cache_clear()


class SmallWindows(HandMerge):
    """Merges by hand in the windows of `OPTIONS`."""

    def _new(self, entry: Tensor) -> HandPlan:
        return HandPlan(entry, self.sequence_of(entry.shape[1]), self.ratio, WINDOW**2)


@dataclass(frozen=True)
class Cases:
    """How a model is run when it is sharded in one way.

    Attributes:
        toma: ratios at which it is merged.
        door: ratios at which it is, by `toma_fx.diffusers.apply`.
        blocks: ratios at which it is there, its blocks compiled apart.
        refresh: ratios at which it remembers.
    """

    toma: tuple[float, ...] = (0.0, 0.5)
    door: tuple[float, ...] = ()
    blocks: tuple[float, ...] = ()
    refresh: tuple[float, ...] = ()

    @property
    def merged(self) -> set[float]:
        return {*self.toma, *self.door, *self.blocks} - {0.0}


Chosen = dict[str, dict[str, Cases]]
"""By model and way."""
QUICK: Chosen = {
    "flux": {ULYSSES: Cases(refresh=(0.5,)), RING: Cases(blocks=(0.5,))},
    "qwen": {ULYSSES: Cases(refresh=(0.5,))},
    "wan": {ULYSSES: Cases(toma=(0.0,), door=(0.5,)), RING: Cases(toma=(0.75,), refresh=(0.75,))},
    "ltx": {ULYSSES: Cases(toma=(0.5,))},
}
_ALL = Cases(toma=(0.0, *RATIOS), door=(0.5,), blocks=RATIOS, refresh=RATIOS)
LONG: Chosen = {name: {ULYSSES: _ALL, RING: _ALL} for name in ("flux", "qwen", "wan")}
LONG["ltx"] = {ULYSSES: _ALL}
FOUR: Chosen = {
    name: ways | ({UNIFIED: Cases(refresh=RATIOS)} if RING in ways else {})
    for name, ways in LONG.items()
}


def quick(rank: int, ranks: int) -> Results:
    """What every change is tested by, in one group."""
    found = small_models(rank, ranks, QUICK)
    found["pictures"] = pipes.pictures(rank, ranks)
    found["refused"] = uneven.refused(rank, ranks)
    return found


def small_models(rank: int, ranks: int, chosen: Chosen) -> Results:
    """Each model alone and sharded, plain and merged."""
    found: Results = {}
    for name, ways in chosen.items():
        made = MODELS[name]()
        alone = _alone(name, made, ranks, ways) if rank == 0 else {}
        found[name] = {"alone": alone}
        for way, cases in ways.items():
            with nullcontext() if way == ULYSSES else rings_on_a_cpu():
                found[name][way] = _sharded(MODELS[name](), ranks, way, cases)
    return found


def _alone(name: str, made: Made, ranks: int, ways: dict[str, Cases]) -> Results:
    """In one process, which the other ranks wait for: Flux by hand, others in the same windows."""
    merged = {ratio for cases in ways.values() for ratio in cases.merged}
    refresh = {ratio for cases in ways.values() for ratio in cases.refresh}
    found: Results = {"plain": made.model(**made.given)[0]}
    if name == "flux":
        return found | _by_hand(made, ranks, merged, refresh)
    torch._dynamo.reset()
    traced = Traced(made.model)
    for ratio in merged:
        found["toma", ratio] = traced.compiled(**OPTIONS, ratio=ratio)(**made.given)[0]
    with neighbours_of_a_rank(ranks):
        for ratio in refresh:
            run = traced.compiled(**remembering(ratio))
            found["refresh", ratio] = [run(**made.step(time))[0] for time in TIMES]
    return found


def _sharded(made: Made, ranks: int, way: str, cases: Cases) -> Results:
    found: Results = {}
    shard(made.model, ranks, way)
    for ratio in cases.door:  # first: no hook has been called before
        _by_the_door(made, "door", ratio, found)
    found["sharded"] = made.model(**made.given)[0]
    found["sent"] = sent(lambda: made.model(**made.given))
    torch._dynamo.reset()
    traced = Traced(made.model)  # behind a plain call, which lets the hooks know their modules
    for ratio in cases.toma:
        run = traced.compiled(**OPTIONS, ratio=ratio)
        found["toma", ratio] = run(**made.given)[0]
        found["regions", "toma", ratio] = _kinds()
        found["sent", "toma", ratio] = sent(lambda: run(**made.given))  # noqa: B023
    for ratio in cases.refresh:
        run = traced.compiled(**remembering(ratio))
        found["refresh", ratio] = [run(**made.step(time))[0] for time in TIMES]
        found["sent", "refresh", ratio] = sent(lambda: run(**made.step(0.1)))  # noqa: B023
    for ratio in cases.blocks:
        _by_the_door(made, "blocks", ratio, found, regional=True)
    return found


def _by_the_door(made: Made, name: str, ratio: float, found: Results, **more: Any) -> None:
    options = dict(OPTIONS)
    inner = {"inner_backend": options.pop("inner_backend")}
    config = TomaConfig(**options, ratio=ratio)
    apply(made.model, config, fullgraph=True, options=inner, **more)
    found[name, ratio] = made.model(**made.given)[0]
    found["regions", name, ratio] = _kinds()
    found["sent", name, ratio] = sent(lambda: made.model(**made.given))
    remove(made.model)


def _kinds() -> list[tuple[str, str, int, int]]:
    """Of the graph that was compiled last."""
    regions = toma_fx.last_report().regions
    return [(r.kind, r.status, r.tokens, r.merged_tokens) for r in regions]


def sent(run: Callable[[], Any]) -> dict[str, list[int]]:
    """Bytes that each exchange of a call has sent, and each gather has been given, in order."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        run()
    return {
        kind: [
            4 * math.prod(event.input_shapes[0])
            for event in seen.events()
            if event.name == f"_c10d_functional::{operation}"
        ]
        for kind, operation in (("traded", "all_to_all_single"), ("gathered", _GATHER))
    }


_GATHER = "all_gather_into_tensor"


def _by_hand(made: Made, ranks: int, merged: set[float], refresh: set[float]) -> Results:
    """Flux in one process, whose windows, or neighbours, are those of each rank."""
    found: Results = {}
    for ratio in merged:
        sequence = local_order(made.given["img_ids"], ranks)
        how = SmallWindows(ratio, "run", lambda n: sequence)  # noqa: B023 - called at once
        with merged_by_hand(made.model, how):
            found["toma", ratio] = made.model(**made.given)[0]
    cells = tuple(map(tuple, far_cells((ROWS, COLUMNS), ranks).tolist()))
    for ratio in refresh:
        memory = HandRefresh(share_of(ratio), lambda n: cells, remembering(ratio)["keys"])
        memory.settings["trend"] = 0.5
        with remembered_by_hand(made.model, memory) as call:
            memory.begin()
            found["refresh", ratio] = [call(**made.step(time))[0] for time in TIMES]
    return found
