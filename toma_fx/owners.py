"""What compiled graphs keep between calls, for each owner of theirs.

Compiled code keeps nothing itself: plans, memories and the guard are inputs that it changes in
place. So one graph serves every module that Dynamo lets share it, all blocks of a class or two
models of one, and each has its own. A call's *owner* is known by its first parameter. What is kept
for it is made when it is first seen, for each stream, and freed with it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from toma_fx import guard
from toma_fx.passes.rewrite.lift import Lifted
from toma_fx.seen import Seen
from toma_fx.streams import DEFAULT_STREAM, stream_of

_TALLY = "toma_guard_tally"


class NothingRemembered(Exception):  # noqa: N818 - an answer, not a failure
    """A graph that computes nothing was called where nothing was computed before."""


class Kept:
    """What is kept for one owner in one stream.

    Attributes:
        tensors: by name.
        seen: the conditionings of its calls, where graphs that compute nothing share it.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors
        self.seen = Seen()

    @property
    def tally(self) -> Tensor | None:
        return self.tensors.get(_TALLY)

    def forget(self) -> None:
        """The next call selects anew; statistics stay."""
        self.seen = Seen()
        if self.tally is not None:
            self.tally[guard.FRESH] = guard.RESET


class Owner:
    """Whom something is kept for: a module that runs a graph.

    Args:
        held: its parameters; held weakly, so as not to keep it alive.

    Attributes:
        streams: what is kept in each.
        past: statistics of streams that were given up.
    """

    def __init__(self, held: Iterable[nn.Parameter]) -> None:
        self._parameters = [weakref.ref(parameter) for parameter in held]
        self.ids = frozenset(id(ref()) for ref in self._parameters)
        self.streams: dict[str, Kept] = {}
        self.past: list[Tensor] = []

    def belongs_to(self, parameters: AbstractSet[int]) -> bool:
        return any(id(ref()) in parameters for ref in self._parameters if ref() is not None)

    def forget(self) -> None:
        """Select anew in every stream, and give up those that are not open here."""
        for name in set(self.streams) - {DEFAULT_STREAM, stream_of(self.ids)}:
            tally = self.streams.pop(name).tally
            if tally is not None:
                self.past = [sum(self.past, tally)]
        for kept in self.streams.values():
            kept.forget()

    def tallies(self) -> list[Tensor]:
        """Statistics of every stream there was."""
        now = [kept.tally for kept in self.streams.values()]
        return [*self.past, *(tally for tally in now if tally is not None)]


class PlanState:
    """What one compiled graph keeps, or several that share it, for every owner.

    Args:
        lifted: the inputs of the graph that are kept.
        example_inputs: the others; the parameters among them tell the owner of a call.
        constants: parameters that are part of the graph, which then has a single owner.
    """

    def __init__(
        self,
        lifted: Lifted,
        example_inputs: Sequence[Any],
        constants: Iterable[nn.Parameter] = (),
    ) -> None:
        self._facts = _facts(lifted.kept)
        self._unused: dict[str, Tensor] | None = lifted.kept
        self._places = [i for i, v in enumerate(example_inputs) if isinstance(v, nn.Parameter)]
        self._constants = list(constants)
        self._by_parameter = WeakIdKeyDictionary()
        self._alone: Owner | None = None
        self._lock = threading.Lock()
        states.add(self)

    @property
    def owners(self) -> list[Owner]:
        """Those that were seen and still exist."""
        with self._lock:
            return [*self._by_parameter.values(), *([self._alone] if self._alone else [])]

    def plans(self, parameters: AbstractSet[int]) -> int:
        """How many are kept for owners with one of these parameters, by `id`."""
        mine = sum(owner.belongs_to(parameters) for owner in self.owners)
        return mine * sum(name.endswith("_merging") for name in self._facts)

    def fits(self, lifted: Lifted) -> bool:
        """Whether another graph may use what this one keeps: whether it keeps the same."""
        return _facts(lifted.kept) == self._facts

    def guarded(
        self,
        compiled: Callable[..., Any],
        names: Sequence[str],
        told_apart: Sequence[int] | None = None,
        computes: bool = True,
    ) -> Callable[..., Any]:
        """The compiled graph on what its owner keeps, which is forgotten where a call fails.

        Args:
            compiled: the graph; its last inputs are what is kept.
            names: of these.
            told_apart: places of the inputs that tell conditionings apart, where a graph that
                computes nothing uses what this one keeps.
            computes: False where it has nothing but what is remembered; it then raises
                `NothingRemembered` for a conditioning under which nothing was computed.
        """
        slots = self._facts.get("toma_guard_slots", ((1,),))[0][0]

        def run(*args: Any) -> Any:
            owner = self._owner(args)
            kept = self._kept(owner)
            given = [args[place] for place in told_apart or ()]
            if not computes and not kept.seen.knows(given):
                raise NothingRemembered
            try:
                result = compiled(*args, *[kept.tensors[name] for name in names])
            except BaseException:
                owner.forget()
                raise
            if told_apart is not None:
                kept.seen.add(given, slots)
            return result

        return run

    def _owner(self, args: Sequence[Any]) -> Owner:
        """Dynamo lets models of one class share a graph; they must not share plans."""
        found: Owner | None = self._alone
        if self._places:
            found = self._by_parameter.get(args[self._places[0]])
        if found is None:
            with self._lock:
                found = Owner([*(args[place] for place in self._places), *self._constants])
                if self._places:
                    found = self._by_parameter.setdefault(args[self._places[0]], found)
                else:
                    found = self._alone = self._alone or found
        return found

    def _kept(self, owner: Owner) -> Kept:
        stream = stream_of(owner.ids)
        kept = owner.streams.get(stream)
        if kept is None:
            with self._lock:
                kept = owner.streams.setdefault(stream, Kept(self._new()))
        return kept

    def _new(self) -> dict[str, Tensor]:
        """As before the first call; the graph's own tensors serve the first owner."""
        if self._unused is not None:
            unused, self._unused = self._unused, None
            return unused
        # Whoever sees an owner first may be in inference mode, and others not.
        with torch.inference_mode(False):
            return {name: _cold(name, *facts) for name, facts in self._facts.items()}


states: weakref.WeakSet[PlanState] = weakref.WeakSet()


def owners_in(model: nn.Module) -> list[Owner]:
    """The owners that belong to a model, or to a part of it."""
    parameters = {id(parameter) for parameter in model.parameters()}
    return [o for state in list(states) for o in state.owners if o.belongs_to(parameters)]


def _facts(kept: Mapping[str, Tensor]) -> dict[str, tuple[Any, ...]]:
    return {name: (tuple(t.shape), t.dtype, t.device) for name, t in kept.items()}


def _cold(name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if name == _TALLY:
        return guard.cold_tally(device)
    return torch.zeros(shape, dtype=dtype, device=device)
