"""The reuse cache as a user sees it: statistics, streams, reset.

A compiled graph keeps its plans and its guard in buffers. Nothing here runs during a step, but for
one `try` around it: a call that fails leaves plans half made, so they are forgotten.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from toma_fx import guard
from toma_fx.passes.methods.slots import SlotBuffer
from toma_fx.seen import Seen

DEFAULT_STREAM = "default"


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


class NothingRemembered(Exception):  # noqa: N818 - an answer, not a failure
    """A graph that computes nothing was called where nothing was computed before."""


class PlanState:
    """The buffers of one compiled graph, or of several that share them.

    Args:
        gm: the rewritten graph module.
        example_inputs: its inputs; the parameters among them tell which model it belongs to.
    """

    def __init__(self, gm: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> None:
        buffers = dict(gm.named_buffers())
        self.tally = buffers.get("toma_guard_tally")
        self.groups = sum(name.endswith("_merging") for name in buffers)
        self._shared = _shared_by(gm)
        self._seen = Seen()
        self._slots = len(buffers.get("toma_guard_slots", ())) or 1
        self._state = [buffers[name] for name in buffers if _is_state(name)]
        if self.tally is not None:  # freshness belongs to a stream, statistics to all
            self._state.append(self.tally[: guard.STEPS])
        self._places = [i for i, v in enumerate(example_inputs) if isinstance(v, nn.Parameter)]
        self._constants = list(gm.parameters())
        self._own(example_inputs)
        self._stream = _stream_of({id(ref()) for ref in self._parameters})
        self._parked: dict[str, tuple[list[Tensor], Seen]] = {}
        _states.add(self)

    def _own(self, inputs: Sequence[Any]) -> None:
        """Belong to the model of these parameters; weakly, so as not to keep it alive."""
        held = [*(inputs[place] for place in self._places), *self._constants]
        self._parameters = [weakref.ref(parameter) for parameter in held]

    def belongs_to(self, parameters: set[int]) -> bool:
        return any(id(ref()) in parameters for ref in self._parameters if ref() is not None)

    def share(self, gm: torch.fx.GraphModule) -> bool:
        """Let another graph of the same model use these buffers, and none of its own.

        To be asked before it is compiled. False where it needs others than these.
        """
        theirs = _shared_by(gm)
        if {name: _facts(held) for name, held in theirs.items()} != {
            name: _facts(held) for name, held in self._shared.items()
        }:
            return False
        for name, held in self._shared.items():
            gm.register_buffer(name, held)
        return True

    def forget(self) -> None:
        """The next call selects anew; statistics stay."""
        self._parked.clear()
        self._seen = Seen()
        if self.tally is not None:
            self.tally[guard.FRESH] = guard.RESET

    def enter(self, stream: str) -> None:
        """Park the plans of the current stream and bring those of another."""
        if stream == self._stream:
            return
        self._parked[self._stream] = [buffer.clone() for buffer in self._state], self._seen
        plans, self._seen = self._parked.pop(stream, (None, Seen()))
        if plans is not None:
            for buffer, parked in zip(self._state, plans, strict=True):
                buffer.copy_(parked)
        elif self.tally is not None:
            self.tally[guard.FRESH] = guard.COLD
        self._stream = stream

    def guarded(
        self,
        compiled: Callable[..., Any],
        told_apart: Sequence[int] | None = None,
        computes: bool = True,
    ) -> Callable[..., Any]:
        """The compiled graph, forgetting its plans where a call fails.

        Args:
            compiled: the graph.
            told_apart: places of the inputs that tell conditionings apart, where it shares its
                buffers with a graph that computes nothing.
            computes: False where it has nothing but what is remembered; it then raises
                `NothingRemembered` for a conditioning under which nothing was computed.
        """
        first = self._places[0] if self._places else None

        def run(*args: Any) -> Any:
            # Dynamo lets models of one class share a graph; they must not share plans.
            if first is not None and args[first] is not self._parameters[0]():
                self.forget()
                self._own(args)
            given = [args[place] for place in told_apart or ()]
            if not computes and not self._seen.knows(given):
                raise NothingRemembered
            try:
                result = compiled(*args)
            except BaseException:
                self.forget()
                raise
            if told_apart is not None:
                self._seen.add(given, self._slots)
            return result

        return run


def state_of(
    gm: torch.fx.GraphModule,
    example_inputs: Sequence[Any],
    shared: list[PlanState],
    mine: list[PlanState],
) -> PlanState:
    """The state of a graph that may use what another graph of the model keeps.

    Args:
        gm: the rewritten graph module, before it is compiled.
        example_inputs: its inputs.
        shared: states of the model's graphs; a new one is added.
        mine: those that graphs like this one use already; the one that is found is added.
    """
    for state in shared:
        if state not in mine and state.share(gm):
            mine.append(state)
            return state
    state = PlanState(gm, example_inputs)
    shared.append(state)
    mine.append(state)
    return state


_states: weakref.WeakSet[PlanState] = weakref.WeakSet()


def reset(model: nn.Module) -> None:
    """Forget all plans of a model: its next call, in any stream, selects anew.

    Statistics stay. A model that was never compiled has nothing to forget.
    """
    for state in _of(model):
        state.forget()


def reuse_stats(model: nn.Module) -> ReuseStats:
    """Read the statistics of a model's caches; on CUDA this waits for the device, once a graph."""
    total = ReuseStats()
    for state in _of(model):
        total.groups += state.groups
        if state.tally is None:
            continue
        total.count(state.tally)
    return total


@contextmanager
def stream(model: nn.Module, name: str) -> Iterator[None]:
    """Calls inside use plans of their own, kept under `name` until `reset`.

    For several generations of one prompt that interleave on one compiled model. Switching copies
    the plans on the device: `W·d·n` numbers twice a group, item and slot, a few megabytes; no
    synchronisation.
    """
    parameters = {id(parameter) for parameter in model.parameters()}
    opened = (parameters, name)
    _streams.append(opened)
    try:
        for state in _of(model):
            state.enter(name)
        yield
    finally:
        # Contexts may be left in any order: remove this one, not the innermost.
        _streams[:] = [entry for entry in _streams if entry is not opened]
        for state in _of(model):  # graphs compiled inside are among them
            state.enter(_stream_of(parameters))


# The streams that are open, innermost last, with the parameters of their models.
_streams: list[tuple[set[int], str]] = []


def _stream_of(parameters: set[int]) -> str:
    for theirs, name in reversed(_streams):
        if theirs & parameters:
            return name
    return DEFAULT_STREAM


def _of(model: nn.Module) -> list[PlanState]:
    parameters = {id(parameter) for parameter in model.parameters()}
    return [state for state in _states if state.belongs_to(parameters)]


def _shared_by(gm: torch.fx.GraphModule) -> dict[str, Tensor]:
    """What a graph keeps between calls, by name."""
    held = gm.named_buffers()
    return {name: b for name, b in held if _is_state(name) or name == "toma_guard_tally"}


def _facts(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.device


def _is_state(name: str) -> bool:
    return name.startswith((*SlotBuffer.PREFIXES, "toma_guard_memory", "toma_guard_slots"))
