"""What the door reads of a denoiser's call, and what it changes before Dynamo sees it."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from toma_fx.errors import TomaWarning
from toma_fx.passes.normalize.marks import LIFTED
from toma_fx.strides import settled

_TIMESTEPS = ("timestep", "timesteps", "timestep_ratio", "t")
_BATCH = 0  # its axis
_MARKS = ("dynamic", "weak_dynamic", "unbacked", "strict_unbacked")

Call = tuple[tuple[Any, ...], dict[str, Any]]


class Arguments:
    """The arguments of one denoiser, by its signature.

    Args:
        model: the denoiser; its first argument is the latents.

    Attributes:
        latents_name: of that argument.
        timestep_name: of the timestep.
    """

    def __init__(self, model: nn.Module) -> None:
        names = list(inspect.signature(model.forward).parameters)
        self.latents_name = names[0] if names else ""
        self.timestep_name = next((name for name in _TIMESTEPS if name in names), "timestep")
        self._places = {name: place for place, name in enumerate(names)}
        self._told = False

    def latents(self, call: Call) -> Any:
        return self._read(call, self.latents_name)

    def timestep(self, call: Call) -> Any:
        return self._read(call, self.timestep_name)

    def by_name(self, call: Call) -> dict[str, Any]:
        """All arguments of a call, by name; those without one, behind `*args`, by their place."""
        args, kwargs = call
        names = {place: name for name, place in self._places.items()}
        placed = {names.get(place, f"args[{place}]"): value for place, value in enumerate(args)}
        return {**placed, **kwargs}

    def with_tensors(self, call: Call) -> Call:
        """The same call with a tensor for a timestep that is a number.

        Numbers are part of what Dynamo compiles; another number would compile anew.
        """
        number = self.timestep(call)
        if not isinstance(number, Real) or isinstance(number, bool):
            return call
        whole = isinstance(number, Integral)
        tensor = torch.tensor(number, dtype=torch.int64 if whole else torch.float64)
        args, kwargs = call
        if self.timestep_name in kwargs:
            return args, {**kwargs, self.timestep_name: tensor}
        place = self._places[self.timestep_name]
        return (*args[:place], tensor, *args[place + 1 :]), kwargs

    def for_dynamo(self, call: Call, merges: bool) -> Call:
        """The same call, of tensors that Dynamo can let go and, in merged graphs, make static.

        Of a view it would trace the base as well, and keep the trace (torch 2.13). A size that is
        marked dynamic could not be static: those marks stay behind, with a warning, but for the
        batch's.
        """
        marked = merges and any(map(_is_marked, tensors(call)))
        if marked and not self._told:
            self._told = True
            warnings.warn(f"toma_fx: {LIFTED}", TomaWarning, stacklevel=2)

        def own(tensor: Tensor) -> Tensor:
            replaced = merges if _is_marked(tensor) else tensor._base is not None
            return tensor.detach() if replaced else tensor

        owned: Call = tree_map_only(Tensor, own, call)
        return owned

    def _read(self, call: Call, name: str) -> Any:
        args, kwargs = call
        place = self._places.get(name, len(args))
        return kwargs.get(name, args[place] if place < len(args) else None)


def as_contiguous(call: Call) -> Call:
    """The same call, where strides that mean nothing are those of contiguous tensors.

    An axis of one element may have any, such as a batch of one that was cut out of a longer
    sequence. Dynamo would compile the code of a block anew for them.
    """
    seen: Call = tree_map_only(Tensor, _as_contiguous, call)
    return seen


def _as_contiguous(tensor: Tensor) -> Tensor:
    if 1 not in tensor.shape or tensor.layout is not torch.strided:
        return tensor
    strides = settled(tensor)
    return tensor if strides == tensor.stride() else tensor.as_strided(tensor.shape, strides)


def tensors(call: Call) -> Sequence[Tensor]:
    """All tensors of a call, however deep."""
    return [leaf for leaf in tree_leaves(call) if isinstance(leaf, Tensor)]


def _is_marked(tensor: object) -> bool:
    own = getattr(tensor, "__dict__", {})
    marked = (set(own.get(f"_dynamo_{mark}_indices", ())) for mark in _MARKS)
    return any(axes - {_BATCH} for axes in marked)
