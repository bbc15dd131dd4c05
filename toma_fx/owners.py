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
from toma_fx.config import TomaConfig
from toma_fx.eager_guard import Moment, Schedule
from toma_fx.following import Call, Following, Place, calls
from toma_fx.passes.methods import METHODS
from toma_fx.passes.methods.slots import MOMENT
from toma_fx.passes.rewrite.lift import Lifted
from toma_fx.seen import Seen
from toma_fx.streams import DEFAULT_STREAM, ids_of, stream_of

_TALLY, _PLANS = "toma_guard_tally", "toma_plan_"


class NothingRemembered(Exception):  # noqa: N818 - an answer, not a failure
    """A graph that computes nothing was called where nothing was computed before."""


class NotFollowed(Exception):  # noqa: N818 - an answer, not a failure
    """A graph that remembers was called where nobody tells the step."""


class Plans(dict[str, Tensor]):
    """The plans of one owner, or of several; held by each."""


class Kept:
    """What is kept for one owner in one stream.

    Attributes:
        tensors: by name, the plans among them.
        seen: the conditionings of its calls, where graphs that compute nothing share it.
    """

    def __init__(self, tensors: dict[str, Tensor], plans: Plans) -> None:
        self.tensors = {**tensors, **plans}
        self.seen = Seen()
        self._plans = plans  # kept while one of those that share them is

    @property
    def tally(self) -> Tensor | None:
        return self.tensors.get(_TALLY)

    def forget(self) -> None:
        """The next call selects anew; statistics stay."""
        self.seen = Seen()
        if self.tally is not None:
            self.tally[guard.FRESH] = guard.RESET
        for name, tensor in self.tensors.items():
            if name.endswith("_seen"):
                tensor.zero_()


class Owner:
    """Whom something is kept for: a module that runs a graph.

    Args:
        held: its parameters; held weakly, so as not to keep it alive.

    Attributes:
        streams: what is kept in each.
        past: statistics of streams that were given up.
        following: the denoiser that it is part of, as far as that is known.
        place: where in it, likewise.
    """

    def __init__(self, held: Iterable[nn.Parameter]) -> None:
        self._parameters = [weakref.ref(parameter) for parameter in held]
        self.ids = frozenset(id(ref()) for ref in self._parameters)
        self.streams: dict[str, Kept] = {}
        self.past: list[Tensor] = []
        self.following: Following | None = None
        self.place: Place | None = None

    def call(self) -> Call | None:
        """The call of the followed denoiser that it is part of; None outside of one."""
        for call in calls():
            if call.following is self.following or self._is_part_of(call.following):
                return call
        return None

    def _is_part_of(self, following: Following) -> bool:
        place = following.place(self.ids)
        if place is not None:
            self.following, self.place = following, place
            for name in list(self.streams):  # it may share its plans from now on
                self._give_up(name)
        return place is not None

    def belongs_to(self, parameters: AbstractSet[int]) -> bool:
        return any(id(ref()) in parameters for ref in self._parameters if ref() is not None)

    def forget(self) -> None:
        """Select anew in every stream, and give up those that are not open here."""
        for name in set(self.streams) - {DEFAULT_STREAM, stream_of(self.ids)}:
            self._give_up(name)
        for kept in self.streams.values():
            kept.forget()

    def begin(self) -> None:
        """Select anew in the stream that is open here."""
        kept = self.streams.get(stream_of(self.ids))
        if kept is not None:
            kept.forget()

    def _give_up(self, stream: str) -> None:
        tally = self.streams.pop(stream).tally
        if tally is not None:
            self.past = [sum(self.past, tally)]

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
        config: by which it was merged.
    """

    def __init__(
        self,
        lifted: Lifted,
        example_inputs: Sequence[Any],
        constants: Iterable[nn.Parameter],
        config: TomaConfig,
    ) -> None:
        self._facts = _facts(lifted.kept)
        self._unused: dict[str, Tensor] | None = lifted.kept
        self._places = [i for i, v in enumerate(example_inputs) if isinstance(v, nn.Parameter)]
        self._constants = list(constants)
        self._schedule = Schedule.of(config)
        self._shared = (config, lifted.orders, *_only_plans(self._facts))
        self._by_parameter = WeakIdKeyDictionary()
        self._alone: Owner | None = None
        self._remembers = METHODS[config.method].remembers
        self._nobody = lifted.moment
        self._device = next((told.device for told in lifted.moment.values()), torch.device("cpu"))
        self._lock = threading.Lock()
        states.add(self)

    @property
    def owners(self) -> list[Owner]:
        """Those that were seen and still exist."""
        with self._lock:
            return [*self._by_parameter.values(), *([self._alone] if self._alone else [])]

    def plans(self, parameters: AbstractSet[int]) -> dict[tuple[Any, ...], int]:
        """How many are kept for owners with one of these parameters, by who shares them."""
        count = sum(name.endswith("_merging") for name in self._facts)
        mine = [owner for owner in self.owners if owner.belongs_to(parameters)]
        return {self._sharing(owner): count for owner in mine}

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

        One that remembers, and is told the moment, raises `NotFollowed` where nobody tells it.
        """
        slots = self._facts.get("toma_guard_slots", ((1,),))[0][0]
        told = any(name.startswith(MOMENT) for name in names)

        def run(*args: Any) -> Any:
            owner = self._owner(args)
            moment = self._moment(owner) if told else {}
            kept = self._kept(owner)
            tensors = {**kept.tensors, **moment}
            given = [args[place] for place in told_apart or ()]
            if not computes and not kept.seen.knows(given):
                raise NothingRemembered
            try:
                result = compiled(*args, *[tensors[name] for name in names])
            except BaseException:  # other streams go on
                owner.begin()
                if owner.following is not None and told:
                    owner.following.begin()
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
                kept = owner.streams.setdefault(stream, self._new(owner, stream))
        return kept

    def _moment(self, owner: Owner) -> Moment:
        """Of the denoiser's call; a first call each time where nobody tells it.

        Raises:
            NotFollowed: it would begin to remember at each call.
        """
        call = owner.call()
        moment = call.moment(self._schedule, self._device) if call is not None else None
        if moment is None and self._remembers:
            raise NotFollowed
        return moment if moment is not None else self._nobody

    def _new(self, owner: Owner, stream: str) -> Kept:
        """As before the first call; the graph's own tensors serve the first owner."""
        fresh, self._unused = self._unused or {}, None
        key = self._sharing(owner), stream
        plans = _plans.get(key)
        if plans is None:
            plans = _plans[key] = Plans(self._cold(fresh, plans=True))
        return Kept(self._cold(fresh, plans=False), plans)

    def _cold(self, fresh: Mapping[str, Tensor], plans: bool) -> dict[str, Tensor]:
        # Whoever sees an owner first may be in inference mode, and others not.
        with torch.inference_mode(False):
            return {
                name: fresh[name] if name in fresh else _cold(name, *facts)
                for name, facts in self._facts.items()
                if name.startswith(_PLANS) == plans
            }

    def _sharing(self, owner: Owner) -> tuple[Any, ...]:
        """Whose plans an owner uses: those of its run, in whichever graph, or its own."""
        config, place = self._shared[0], owner.place
        run = place.run() if place is not None and place.run is not None else None
        if run is None or place is None or config.share != "run":
            return id(self), id(owner)
        return id(run), place.kind, *self._shared


states: weakref.WeakSet[PlanState] = weakref.WeakSet()
_plans: weakref.WeakValueDictionary[tuple[Any, ...], Plans] = weakref.WeakValueDictionary()


def owners_in(model: nn.Module) -> list[Owner]:
    """The owners that belong to a model, or to a part of it."""
    parameters = ids_of(model)
    return [o for state in list(states) for o in state.owners if o.belongs_to(parameters)]


def _facts(kept: Mapping[str, Tensor]) -> dict[str, tuple[Any, ...]]:
    return {name: (tuple(t.shape), t.dtype, t.device) for name, t in kept.items()}


def _only_plans(facts: Mapping[str, Any]) -> list[Any]:
    return sorted(item for item in facts.items() if item[0].startswith(_PLANS))


def _cold(name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if name == _TALLY:
        return guard.cold_tally(device)
    return torch.zeros(shape, dtype=dtype, device=device)
