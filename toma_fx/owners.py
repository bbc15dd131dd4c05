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
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from toma_fx import guard
from toma_fx.config import TomaConfig
from toma_fx.eager_guard import Moment, Schedule
from toma_fx.following import Call, Following, Place, calls
from toma_fx.passes.methods import METHODS
from toma_fx.passes.methods.slots import MOMENT
from toma_fx.passes.rewrite.batched import Batched, Size, Sizes
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


class Stream(NamedTuple):
    """Of whom something is kept: generations of a name, and of a batch.

    Attributes:
        name: of the stream.
        batch: how many items a call has, where that is told; plans of others are others.
    """

    name: str
    batch: int | None = None


class Owner:
    """Whom something is kept for: a module that runs a graph.

    Args:
        held: its parameters; held weakly, so as not to keep it alive.

    Attributes:
        streams: what is kept in each, for each size of the batch.
        past: statistics of streams that were given up.
        following: the denoiser that it is part of, as far as that is known.
        place: where in it, likewise.
    """

    def __init__(self, held: Iterable[nn.Parameter]) -> None:
        self._parameters = [weakref.ref(parameter) for parameter in held]
        self.ids = frozenset(id(ref()) for ref in self._parameters)
        self.streams: dict[Stream, Kept] = {}
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
            for stream in list(self.streams):  # it may share its plans from now on
                self._give_up(stream)
        return place is not None

    def belongs_to(self, parameters: AbstractSet[int]) -> bool:
        return any(id(ref()) in parameters for ref in self._parameters if ref() is not None)

    def forget(self) -> None:
        """Select anew in every stream, and give up those that are not open here."""
        for stream in list(self.streams):
            if stream.name not in (DEFAULT_STREAM, stream_of(self.ids)):
                self._give_up(stream)
        for kept in self.streams.values():
            kept.forget()

    def begin(self) -> None:
        """Select anew in the stream that is open here."""
        name = stream_of(self.ids)
        for stream, kept in self.streams.items():
            if stream.name == name:
                kept.forget()

    def _give_up(self, stream: Stream) -> None:
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
        constants: parameters that are part of the graph, which then has a single owner.
        config: by which it was merged.
        batched: how sizes follow the batch, where the graph serves several.
    """

    def __init__(
        self,
        lifted: Lifted,
        constants: Iterable[nn.Parameter],
        config: TomaConfig,
        batched: Batched | None = None,
    ) -> None:
        self._facts = _facts(lifted.kept, batched)
        self._batched = batched
        self._unused: dict[str, Tensor] | None = lifted.kept
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

    @property
    def serves_batches(self) -> bool:
        """Whether what is kept is made for each batch size."""
        return self._batched is not None

    def plans(self, parameters: AbstractSet[int]) -> dict[tuple[Any, ...], int]:
        """How many are kept for owners with one of these parameters, by who shares them."""
        count = sum(name.endswith("_merging") for name in self._facts)
        mine = [owner for owner in self.owners if owner.belongs_to(parameters)]
        return {self._sharing(owner): count for owner in mine}

    def fits(self, lifted: Lifted, batched: Batched | None = None) -> bool:
        """Whether another graph may use what this one keeps: whether it keeps the same.

        Args:
            lifted: what it keeps.
            batched: how its sizes follow the batch; None where it serves one alone.
        """
        mine = self._facts
        if batched is None and self._batched is not None:
            batch = self._only_batch(lifted)
            mine = {name: facts.at(batch) for name, facts in mine.items()}
        return _facts(lifted.kept, batched) == mine

    def _only_batch(self, lifted: Lifted) -> int | None:
        """Of a graph that serves one alone, by the sizes of what it keeps."""
        for name, held in lifted.kept.items():
            facts = self._facts.get(name)
            for size, number in zip(facts.sizes if facts else (), held.shape, strict=False):
                if size.items:
                    return (number - size.fixed) // size.items
        return None

    def guarded(
        self,
        compiled: Callable[..., Any],
        lifted: Lifted,
        inputs: Sequence[Any],
        batched: Batched | None = None,
        told_apart: Sequence[int] | None = None,
        computes: bool = True,
    ) -> Callable[..., Any]:
        """The compiled graph on what its owner keeps, which is forgotten where a call fails.

        Args:
            compiled: the graph; its last inputs are what is kept.
            lifted: these; this state was made for them, or fits them.
            inputs: examples of the others; the parameters among them tell the owner of a call.
            batched: how it serves several batches; None where it serves one.
            told_apart: places of the inputs that tell conditionings apart, where a graph that
                computes nothing uses what this one keeps.
            computes: False where it has nothing but what is remembered; it then raises
                `NothingRemembered` for a conditioning under which nothing was computed.

        One that remembers, and is told the moment, raises `NotFollowed` where nobody tells it.
        """
        rows = self._facts.get("toma_guard_slots")
        slots = rows.sizes[0].fixed if rows is not None else 1
        names = lifted.names
        told = any(name.startswith(MOMENT) for name in names)
        places = [i for i, value in enumerate(inputs) if isinstance(value, nn.Parameter)]
        only = self._only_batch(lifted) if self._batched is not None else None

        def run(*args: Any) -> Any:
            owner = self._owner([args[place] for place in places])
            moment = self._moment(owner) if told else {}
            batch = only if batched is None else int(args[batched.place].shape[0])
            kept = self._kept(owner, batch)
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

    def _owner(self, parameters: Sequence[nn.Parameter]) -> Owner:
        """Dynamo lets models of one class share a graph; they must not share plans."""
        found: Owner | None = self._alone
        if parameters:
            found = self._by_parameter.get(parameters[0])
        if found is None:
            with self._lock:
                found = Owner([*parameters, *self._constants])
                if parameters:
                    found = self._by_parameter.setdefault(parameters[0], found)
                else:
                    found = self._alone = self._alone or found
        return found

    def _kept(self, owner: Owner, batch: int | None) -> Kept:
        stream = Stream(stream_of(owner.ids), batch)
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

    def _new(self, owner: Owner, stream: Stream) -> Kept:
        """As before the first call; the graph's own tensors serve the first owner."""
        own = self._batched is None or self._batched.size == stream.batch
        fresh: dict[str, Tensor] = {}
        if own:
            fresh, self._unused = self._unused or {}, None
        key = self._sharing(owner), stream
        plans = _plans.get(key)
        if plans is None:
            plans = _plans[key] = Plans(self._cold(fresh, stream, plans=True))
        return Kept(self._cold(fresh, stream, plans=False), plans)

    def _cold(self, fresh: Mapping[str, Tensor], stream: Stream, plans: bool) -> dict[str, Tensor]:
        # Whoever sees an owner first may be in inference mode, and others not.
        with torch.inference_mode(False):
            return {
                name: fresh[name] if name in fresh else facts.cold(name, stream.batch)
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


class _Facts(NamedTuple):
    """What must be known of a tensor to make another like it."""

    sizes: tuple[Size, ...]
    dtype: torch.dtype
    device: torch.device

    def at(self, batch: int | None) -> _Facts:
        """For one batch size."""
        return self._replace(sizes=tuple(Size(size.at(batch)) for size in self.sizes))

    def cold(self, name: str, batch: int | None) -> Tensor:
        if name == _TALLY:
            return guard.cold_tally(self.device)
        shape = [size.at(batch) for size in self.sizes]
        return torch.zeros(shape, dtype=self.dtype, device=self.device)


def _facts(kept: Mapping[str, Tensor], batched: Batched | None) -> dict[str, _Facts]:
    sizes: Sizes = {name: tuple(map(Size, held.shape)) for name, held in kept.items()}
    sizes = sizes if batched is None else batched.sizes
    return {name: _Facts(sizes[name], held.dtype, held.device) for name, held in kept.items()}


def _only_plans(facts: Mapping[str, _Facts]) -> list[Any]:
    return sorted((item for item in facts.items() if item[0].startswith(_PLANS)), key=_name)


def _name(item: tuple[str, _Facts]) -> str:
    return item[0]
