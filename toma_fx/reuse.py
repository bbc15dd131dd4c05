"""The reuse cache as a user sees it: statistics, streams, reset.

What is kept, and for whom, is a matter of `toma_fx.owners`. Nothing here runs during a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from toma_fx import guard
from toma_fx.following import followings_in
from toma_fx.owners import Kept, owners_in, states
from toma_fx.streams import ids_of, opened


@dataclass
class ReuseStats:
    """What the caches of a model did, summed over its compiled graphs and streams.

    Attributes:
        groups: plans, over all graphs.
        steps: denoising steps seen; sequential guidance counts once.
        selections: calls that picked destinations anew.
        weighings: calls that computed the weights anew, selections among them.
        reuses: calls that did neither.
        misses: selections by reason; their sum is `selections`. `cold` and `reset`: nothing was
            kept for this prompt; `conditioning`: another prompt's plans were given up for it (many
            of these ask for more `slots`); `grid`: tokens stand elsewhere; `new_generation`: the
            guard saw a picture begin; `schedule`: its turn had come.
    """

    groups: int = 0
    steps: int = 0
    selections: int = 0
    weighings: int = 0
    reuses: int = 0
    misses: dict[str, int] = field(default_factory=lambda: dict.fromkeys(guard.MISSES, 0))

    def count(self, tally: Tensor) -> None:
        """Add the counts of one graph's `tally`; on CUDA this waits for the device."""
        counts = tally.tolist()
        self.steps += counts[guard.STEPS]
        self.selections += counts[guard.SELECTIONS]
        self.weighings += counts[guard.WEIGHINGS]
        self.reuses += counts[guard.REUSES]
        for reason, number in zip(guard.MISSES, counts[guard.FIRST_MISS :], strict=True):
            self.misses[reason] += number


def reset(model: nn.Module) -> None:
    """Forget all plans of a model: its next call, in any stream, selects anew.

    Statistics stay. A model that was never compiled has nothing to forget.
    """
    for owner in owners_in(model):
        owner.forget()
    for following in followings_in(ids_of(model)):
        following.forget()


def begin(model: nn.Module) -> None:
    """A picture begins here: the stream that is open selects anew, and others go on.

    Statistics stay. For whoever knows where pictures begin, as the door of diffusers does.
    """
    for owner in owners_in(model):
        owner.begin()
    for following in followings_in(ids_of(model)):
        following.begin()


def reuse_stats(model: nn.Module) -> ReuseStats:
    """Read the statistics of a model's caches.

    On CUDA this waits for the device, once a graph, owner and stream.
    """
    total = ReuseStats()
    parameters = ids_of(model)
    plans: dict[tuple[Any, ...], int] = {}
    for state in list(states):
        plans.update(state.plans(parameters))
    total.groups = sum(plans.values())
    tallies = [tally for owner in owners_in(model) for tally in owner.tallies()]
    tallies += [tally for one in followings_in(parameters) for tally in one.tallies()]
    for tally in tallies:
        total.count(tally)
    return total


@contextmanager
def stream(model: nn.Module, name: str) -> Iterator[None]:
    """Calls inside use plans of their own, kept under `name` until `reset`.

    For several generations of one prompt that interleave on one compiled model, also on several
    threads: a stream is open in the thread (or the asynchronous task) that opened it. Each costs
    the memory of one set of plans, and CUDA graphs are recorded once for each.
    """
    with opened(ids_of(model), name):
        yield


def _of(model: nn.Module) -> list[Kept]:
    return [kept for owner in owners_in(model) for kept in owner.streams.values()]
