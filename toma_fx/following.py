"""The moment of a denoiser's call, for blocks that are compiled apart and show no step.

A hook in front of the denoiser keeps the call. The first block that asks has the guard run, once
for the whole denoiser: eagerly, where the latents lie, with no wait for the device and nothing that
Dynamo would guard on. What it finds is written into tensors that every block has as inputs.

Numbers tell blocks what is due (`guard.notice`): the call in which a picture began, in which
destinations were picked, in which weights were computed. A block that a cache left out for a while
finds that it has missed one, and blocks that share a plan find that it was made by another. Where
it left out all of them, nobody asks, and the guard runs at the end of the call.
"""

from __future__ import annotations

import itertools
import warnings
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from toma_fx.arguments import Arguments
from toma_fx.arguments import Call as Given
from toma_fx.eager_guard import EagerGuard, Moment, Parts, Schedule, parts_of
from toma_fx.errors import ConfigError, TomaWarning
from toma_fx.fingerprint import fingerprint
from toma_fx.passes.graph.outside import Outside
from toma_fx.passes.methods.slots import MOMENT
from toma_fx.shards import shard_of
from toma_fx.streams import DEFAULT_STREAM, any_open, ids_of, stream_here, stream_of
from toma_fx.told import Told
from toma_fx.unchanged import Unchanged


class Place(NamedTuple):
    """Where a block stands: the innermost list of modules that has it, and its class."""

    run: weakref.ref[nn.Module] | None
    kind: type


class Following:
    """A denoiser that is followed, until `remove`; also a context.

    Holds the model weakly. One is enough, whoever asks: `follow` returns the same again.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)
        self._arguments = Arguments(model)
        self._guards: dict[tuple[Any, ...], EagerGuard] = {}
        self._past: list[Tensor] = []
        self._asked: Schedule | None = None
        self._print: Unchanged[Tensor] = Unchanged(lambda tensor: fingerprint([tensor]))
        self._hooks = (
            model.register_forward_pre_hook(self._enter, with_kwargs=True, prepend=True),
            model.register_forward_hook(self._leave, always_call=True),
        )

    def __enter__(self) -> Following:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Follow no longer; blocks plan at every call then. Nothing if it was removed before."""
        for hook in self._hooks:
            hook.remove()
        model = self._model()
        if model is not None and _following.get(model) is self:
            del _following[model]

    @property
    def is_removed(self) -> bool:
        model = self._model()
        return model is None or _following.get(model) is not self

    def place(self, parameters: Iterable[int]) -> Place | None:
        """Where in the model a block with these parameters, by `id`, stands; None if nowhere."""
        model = self._model()
        wanted = set(parameters)
        named = model.named_parameters(remove_duplicate=False) if model is not None else ()
        paths = [name.split(".") for name, value in named if id(value) in wanted]
        if model is None or not paths:
            return None
        shared = itertools.takewhile(lambda names: len(set(names)) == 1, zip(*paths, strict=False))
        block = [names[0] for names in shared]
        while block:
            *around, _ = block
            found = model.get_submodule(".".join(around))
            if isinstance(found, nn.ModuleList):
                return Place(weakref.ref(found), type(model.get_submodule(".".join(block))))
            block = around
        return Place(None, type(model))

    def fingerprint(self, tensors: list[Tensor], device: torch.device) -> Tensor:
        """Of all bits of each; one that is the same object as before is not read again."""
        prints = [self._print(tensor) for tensor in tensors]
        return torch.cat([found.to(device, non_blocking=True) for found in prints])

    def guard_of(self, schedule: Schedule, stream: str, parts: Parts) -> EagerGuard:
        """The guard of one schedule, in one stream, for calls of this form."""
        self._asked = schedule
        key = schedule, stream, parts.form
        if key not in self._guards:
            self._guards[key] = EagerGuard(schedule, parts)
        return self._guards[key]

    def computed(self, schedule: Schedule, given: Given) -> Computed | None:
        """Whether calls like this one have computed before; None where nothing tells the step."""
        model = self._model()
        parts = parts_of(self._arguments, given, schedule)
        if model is None or parts is None:
            return None
        return Computed(self.guard_of(schedule, stream_here(model), parts), parts)

    def forget(self) -> None:
        """Every picture begins anew; statistics stay. Streams that are not open are given up."""
        model = self._model()
        mine = stream_of(ids_of(model)) if model is not None else ""
        for key, found in list(self._guards.items()):
            if key[1] in (DEFAULT_STREAM, mine):
                found.forget()
            else:
                self._past = [sum(self._past, self._guards.pop(key).tally)]

    def begin(self) -> None:
        """A picture begins anew in the stream that is open here."""
        model = self._model()
        mine = stream_here(model) if model is not None else ""
        for key, found in self._guards.items():
            if key[1] == mine:
                found.forget()

    def tallies(self) -> list[Tensor]:
        """Statistics: every call of the denoiser counts once."""
        return [*self._past, *(found.tally for found in self._guards.values())]

    def _enter(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # The whole model, where it is compiled, sees its own step; a copy has its own hooks.
        mine = not torch.compiler.is_compiling() and _following.get(model) is self
        if mine and not _plain.get():
            call = Call(self, model, self._arguments, (args, kwargs))
            _calls.set((*self._others(), call))

    def _leave(self, model: nn.Module, args: Any, result: Any) -> None:
        if torch.compiler.is_compiling():
            return
        if self._asked is not None and result is not None:  # else it failed
            for call in _calls.get():
                if call.following is self:
                    call.pass_by(self._asked)
        _calls.set(self._others())

    def _others(self) -> tuple[Call, ...]:
        """Calls of other models; torch calls no hook after an interrupt, so that one is left."""
        return tuple(call for call in _calls.get() if call.following is not self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Following:
        return self  # the hooks of a copied model: they do nothing there


class Computed(NamedTuple):
    """A call, and what was computed under its conditioning before."""

    guard: EagerGuard
    parts: Parts

    def knows(self) -> bool:
        """Whether anything was, and its slot was not given up."""
        return self.guard.seen.knows(self.parts.conditioning)

    def add(self) -> None:
        """The call has computed."""
        self.guard.seen.add(self.parts.conditioning, self.guard.slots)


class Call:
    """One call of a denoiser, while it runs."""

    def __init__(
        self, following: Following, model: nn.Module, arguments: Arguments, given: Given
    ) -> None:
        self.following = following
        self.number = next(_numbers)
        self._arguments = arguments
        self._given = given
        self._stream = stream_of(ids_of(model)) if any_open() else ""
        self._config = getattr(model, "config", None)
        self._shard = shard_of(model)
        self._moments: dict[Schedule, Moment | None] = {}

    def outside(self) -> Outside:
        """What a block is told that is compiled now."""
        told = Told(self._arguments, self._given, self._config, self._shard)
        return Outside(True, told.grid, told.positions)

    def moment(self, schedule: Schedule, device: torch.device) -> Moment | None:
        """What the guard says of this call; None where it has no timestep."""
        if schedule not in self._moments:
            self._moments[schedule] = self._decided(schedule)
        found = self._moments[schedule]
        if found is None or found[f"{MOMENT}told"].device == device:
            return found
        return {name: value.to(device, non_blocking=True) for name, value in found.items()}

    def pass_by(self, schedule: Schedule) -> None:
        """Count a call of which a cache left out every block: plans and memories grow older."""
        if not self._moments:
            self._moments[schedule] = self._decided(schedule)

    def _decided(self, schedule: Schedule) -> Moment | None:
        # What is kept is written again, in whatever mode: it must not be a tensor of inference.
        with torch.inference_mode(False), torch.no_grad():
            parts = parts_of(self._arguments, self._given, schedule)
            if parts is None:
                return None
            found = self.following.guard_of(schedule, self._stream or DEFAULT_STREAM, parts)
            return found.advance(parts, self.number, self.following.fingerprint, _rests.get())


_numbers = itertools.count(1)
_following: weakref.WeakKeyDictionary[nn.Module, Following] = weakref.WeakKeyDictionary()
# Of this thread, innermost last.
_calls: ContextVar[tuple[Call, ...]] = ContextVar("toma_fx calls", default=())
_plain: ContextVar[bool] = ContextVar("toma_fx plain", default=False)
_rests: ContextVar[bool] = ContextVar("toma_fx rests", default=False)


def follow(model: nn.Module) -> Following:
    """Let blocks of a denoiser that are compiled apart know the step and the picture's sides.

    For `model.compile_repeated_blocks(backend="toma")`, and engines that compile block by block:
    follow the model before its first call. Plans are then reused from step to step as where the
    whole model is compiled, and `reuse_stats(model)` counts each call of the model once. The
    timestep is found by its name among the arguments, or is `TomaConfig.timestep_input`. Costs
    about a hundred small operations a step, and no wait for the device.

    Args:
        model: the denoiser, a UNet or a transformer; not modified but for two hooks.

    Returns:
        A handle with `remove()`; in a `with` it is removed at the end.

    Raises:
        ConfigError: `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"follow needs the model that denoises, not {type(model).__name__}")
    model = getattr(model, "_orig_mod", model)
    if model not in _following:
        _following[model] = Following(model)
    return _following[model]


def unfollow(model: nn.Module) -> None:
    """Undo `follow`; nothing where the model is not followed."""
    found = _following.get(getattr(model, "_orig_mod", model))
    if found is not None:
        found.remove()


def is_followed(model: nn.Module) -> bool:
    """Whether `follow` was called for a model, and not undone."""
    return model in _following


def followings_in(parameters: Iterable[int]) -> list[Following]:
    """Of models with one of these parameters, by `id`."""
    known = set(parameters)
    return [
        following
        for model, following in list(_following.items())
        if any(id(parameter) in known for parameter in model.parameters())
    ]


@contextmanager
def unfollowed() -> Iterator[None]:
    """Calls inside run plain blocks: nothing is due, and nothing grows older."""
    with _set(_plain):
        yield


@contextmanager
def resting() -> Iterator[None]:
    """Calls inside compute nothing: they go on with what was computed, and begin nothing."""
    with _set(_rests):
        yield


@contextmanager
def _set(flag: ContextVar[bool]) -> Iterator[None]:
    token = flag.set(True)
    try:
        yield
    finally:
        flag.reset(token)


def calls() -> tuple[Call, ...]:
    """Of followed models, that run here now; innermost first."""
    return _calls.get()[::-1]


def tell_unfollowed() -> None:
    """A method that remembers runs the plain graph where nobody tells the step."""
    text = (
        "toma_fx: the plain model runs: its blocks were compiled to remember, and nobody tells "
        "them the step. Keep it followed: toma_fx.follow(model)"
    )
    warnings.warn(text, TomaWarning, stacklevel=2)
