"""What each rank runs: small denoisers of diffusers, sharded by its own hooks, plain and merged."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import toma_fx
from tests.eager_merge import HandMerge, HandPlan, merged_by_hand
from tests.eager_refresh import HandRefresh, remembered_by_hand
from tests.parallel.models import COLUMNS, MODELS, ROWS, Made, shard
from tests.parallel.ranks import Results
from tests.traced import Traced
from toma_fx import TomaConfig
from toma_fx.diffusers import apply, remove
from toma_fx.order import curve_table, order_from_positions
from toma_fx.share import share_of

WINDOW = 4
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
    "flux": Cases(toma=(0.0, 0.5), refresh=(0.5,), by_hand=True),
    "qwen": Cases(alone=(0.5,)),
    "wan": Cases(alone=(0.5,), toma=(0.0,), door=(0.5,)),
}
LONG = {
    "flux": Cases(toma=(0.0, *RATIOS), refresh=RATIOS, by_hand=True),
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
        options["extrapolate"] = 0.5  # a fitted trend is that of a rank's own tokens
        run = traced.compiled(**OPTIONS, **options)
        found["refresh", ratio] = [run(**made.step(time))[0] for time in TIMES]
        found["sent by refresh", ratio] = sent(lambda: run(**made.step(0.1)))  # noqa: B023
    return found


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
        memory.settings["trend"] = 0.5
        with remembered_by_hand(made.model, memory) as call:
            memory.begin()
            found["refresh", ratio] = [call(**made.step(time))[0] for time in TIMES]
    return found
