"""The call that a package was built for, and whether another call fits it.

A package runs a flat list of tensors of fixed shapes. Here a call, `unet(sample, t, ...)` with
whatever is given by place, by name or by default, becomes leaves by path, `sample` or
`added_cond_kwargs['text_embeds']`, which are compared with the leaves of the exported call.
Everything is plain data, kept in the package as JSON.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from toma_fx.errors import CallError, ExportError

_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Leaf:
    """One leaf of a call's arguments.

    Attributes:
        path: the argument's name, and the keys that lead to the leaf within it.
        shape: of a tensor; None for a constant.
        dtype: of a tensor, as in `float32`.
        device: type of its device.
        value: of a constant.
    """

    path: str
    shape: tuple[int, ...] | None = None
    dtype: str = ""
    device: str = ""
    value: Any = None

    def differs(self, given: Any, shapes: bool) -> str:
        """Why `given` does not fit, in its shape too if `shapes`; empty where it does."""
        other = leaf_of(self.path, given)
        if not shapes and other.shape is not None and self.shape is not None:
            other = replace(other, shape=self.shape)
        if self.shape is None:
            same = other.shape is None and type(given) is type(self.value) and given == self.value
            return "" if same else f"{self.path} must be {self.value!r}, not {other}"
        return "" if other == self else f"{self.path} is {other}, not {self}"

    def __str__(self) -> str:
        if self.shape is None:
            return repr(self.value)
        sizes = ", ".join(map(str, self.shape))
        return f"{self.dtype} [{sizes}] on {self.device}"


def leaf_of(path: str, value: Any) -> Leaf:
    if not isinstance(value, Tensor):
        return Leaf(path, value=value)
    dtype = str(value.dtype).removeprefix("torch.")
    return Leaf(path, tuple(map(int, value.shape)), dtype, value.device.type)


@dataclass(frozen=True)
class Call:
    """The leaves of an exported call, in the order of the package's inputs."""

    leaves: tuple[Leaf, ...]

    @property
    def tensors(self) -> list[Leaf]:
        return [leaf for leaf in self.leaves if leaf.shape is not None]

    def differs(
        self, given: Mapping[str, Any], defaults: Mapping[str, Any], shapes: bool = True
    ) -> str:
        """Why a call cannot be served; empty where it can."""
        for leaf in self.leaves:
            if leaf.path not in given:
                return f"{leaf.path} is missing"
            if reason := leaf.differs(given[leaf.path], shapes):
                return reason
        known = {leaf.path for leaf in self.leaves}
        for path, value in given.items():
            default = path in defaults and type(value) is type(defaults[path])
            if path not in known and not (default and value == defaults[path]):
                return f"{path} was not given when the model was exported"
        return ""

    def to_list(self) -> list[dict[str, Any]]:
        return [asdict(leaf) for leaf in self.leaves]

    @classmethod
    def from_list(cls, leaves: Sequence[Mapping[str, Any]]) -> Call:
        shapes = (
            leaf["shape"] if leaf["shape"] is None else tuple(leaf["shape"]) for leaf in leaves
        )
        return cls(tuple(Leaf(**{**a, "shape": b}) for a, b in zip(leaves, shapes, strict=True)))


def sorted_call(
    signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments as they are exported: by name in the order of the signature, contiguous.

    Generated code takes the strides of the example for granted, so they are the plain ones.

    Raises:
        ExportError: the model cannot be called with them.
    """
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ExportError(f"the model cannot be called so: {error}") from error
    names = [name for name in signature.parameters if name in kwargs]
    rest = [name for name in kwargs if name not in names]
    call = tuple(args), {name: kwargs[name] for name in (*names, *rest)}
    found: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map(contiguous, call)
    return found


def contiguous(value: Any) -> Any:
    return value.contiguous() if isinstance(value, Tensor) else value


def describe_call(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Call:
    """The leaves of a call that is exported.

    Raises:
        ExportError: an argument is neither a tensor nor a plain constant.
    """
    values, tree = pytree.tree_flatten((args, kwargs))
    places = pytree.tree_unflatten(list(range(len(values))), tree)
    paths = _leaves(signature.bind(*places[0], **places[1]).arguments)
    for path, place in paths.items():
        if not isinstance(values[place], (Tensor, *_PLAIN)):
            kind = type(values[place]).__name__
            raise ExportError(f"{path} is a {kind}: give tensors, numbers, strings or None")
    found = sorted(paths.items(), key=lambda item: int(item[1]))
    return Call(tuple(leaf_of(path, values[place]) for path, place in found))


class Caller:
    """A model's signature, and what its calls give."""

    def __init__(self, signature: inspect.Signature) -> None:
        self.signature = signature
        defaults = {
            name: parameter.default
            for name, parameter in signature.parameters.items()
            if parameter.default is not parameter.empty
        }
        self.defaults = _leaves(defaults)

    def leaves(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """By path, with what the signature fills in.

        Raises:
            CallError: the model cannot be called so.
        """
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise CallError(f"the model cannot be called so: {error}") from error
        bound.apply_defaults()
        return _leaves(bound.arguments)

    def to_list(self) -> list[dict[str, Any]]:
        return [_parameter(p) for p in self.signature.parameters.values()]

    @classmethod
    def from_list(cls, parameters: Sequence[Mapping[str, Any]]) -> Caller:
        empty = inspect.Parameter.empty
        return cls(
            inspect.Signature(
                [
                    inspect.Parameter(p["name"], p["kind"], default=p.get("default", empty))
                    for p in parameters
                ]
            )
        )


def signature_of(forward: Callable[..., Any]) -> inspect.Signature:
    """Of a model's `forward`, without annotations."""
    found = inspect.signature(forward)
    plain = [p.replace(annotation=p.empty) for p in found.parameters.values()]
    return inspect.Signature(plain)


def _parameter(parameter: inspect.Parameter) -> dict[str, Any]:
    described = {"name": parameter.name, "kind": int(parameter.kind)}
    if parameter.default is not parameter.empty:
        plain = isinstance(parameter.default, _PLAIN)
        # Anything else cannot be told from what a caller gives: only leaving it out is the default.
        described["default"] = parameter.default if plain else repr(parameter.default)
    return described


def _leaves(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves by path; an argument that is no container is its own leaf."""
    found: dict[str, Any] = {}
    for name, value in arguments.items():
        for path, leaf in pytree.tree_flatten_with_path(value)[0]:
            found[f"{name}{pytree.keystr(path)}"] = leaf
    return found


def dtype_of(leaf: Leaf) -> torch.dtype:
    """The dtype of a tensor leaf."""
    found: torch.dtype = getattr(torch, leaf.dtype)
    return found
