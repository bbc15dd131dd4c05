"""Small questions asked of nodes by every pass."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

LINEARS = (aten.linear.default,)
CATS = (aten.cat.default, aten.concat.default, aten.concatenate.default)
SPLITS = (
    aten.split_with_sizes.default,
    aten.split.Tensor,
    aten.split.sizes,
    aten.chunk.default,
)


def shape(node: fx.Node) -> tuple[int, ...]:
    """The sizes of a node's tensor; `()` for anything that is not one tensor."""
    value = node.meta.get("val")
    return tuple(int(size) for size in value.shape) if isinstance(value, torch.Tensor) else ()


def strides(node: fx.Node) -> tuple[int, ...]:
    """Strides of the axes that have more than one element; those of the others mean nothing."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return ()
    return tuple(s if size > 1 else 0 for s, size in zip(value.stride(), value.shape, strict=True))


def facts(node: fx.Node) -> tuple[Any, ...]:
    """Sizes, dtype and device of a node's tensor; `()` for anything that is not one tensor."""
    value = node.meta["val"]
    if not isinstance(value, torch.Tensor):
        return ()
    return tuple(value.shape), value.dtype, value.device


def is_tensor(node: object) -> bool:
    return isinstance(node, fx.Node) and isinstance(node.meta.get("val"), torch.Tensor)


def writes(node: fx.Node) -> bool:
    """Whether a node changes one of its operands in place."""
    return node.op == "call_function" and _writes(node.target)


def is_view(node: fx.Node) -> bool:
    """Whether a node only shows its first operand in another shape, part or dtype."""
    return node.op == "call_function" and _shows(node.target)


# Schemas are slow to read, and these two are asked of every node, many times.
@cache
def _writes(target: Any) -> bool:
    schema = getattr(target, "_schema", None)
    # Detaching a constant that was lifted into the graph changes no element.
    return schema is not None and schema.is_mutable and target is not aten.detach_.default


@cache
def _shows(target: Any) -> bool:
    schema = getattr(target, "_schema", None)
    alias = schema.arguments[0].alias_info if schema is not None and schema.arguments else None
    return alias is not None and not _writes(target)


def is_getitem(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target is operator.getitem


def cat_axis(node: fx.Node) -> int:
    """The axis along which a `cat` joins."""
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    return int(dim) % len(shape(node))


def part_of(node: fx.Node, axis: int) -> tuple[fx.Node, int, int] | None:
    """`(whole, start, stop)` if a node is a run of the elements of another along an axis."""
    if node.target is aten.slice.Tensor:
        defaults: list[Any] = [0, None, None, 1]
        source, dim, start, stop, step = list(node.args) + defaults[len(node.args) - 1 :]
        if dim % len(shape(node)) == axis and step == 1:
            first, last, _ = slice(start, stop).indices(shape(source)[axis])
            return source, first, last
    if is_getitem(node) and node.args[0].target in SPLITS:
        split, index = node.args
        dim = split.args[2] if len(split.args) > 2 else split.kwargs.get("dim", 0)
        if dim % len(shape(node)) == axis:
            sizes = [int(part.shape[axis]) for part in split.meta["val"]]
            first = sum(sizes[:index])
            return split.args[0], first, first + sizes[index]
    return None


def op_name(node: fx.Node) -> str:
    """`aten.linear.default` as users know it."""
    if node.op != "call_function":
        return f"{node.op} {node.target}"
    return str(node.target)


def schema_name(node: fx.Node) -> str:
    """`aten::linear`: known also of operations whose package is not imported yet; `""` without."""
    return getattr(getattr(node.target, "_schema", None), "name", "")


def module_stack(node: fx.Node) -> list[tuple[str, str]]:
    """`(path, class name)` of the modules around a node, outermost first."""
    found = []
    for path, cls in (node.meta.get("nn_module_stack") or {}).values():
        name = cls if isinstance(cls, str) else cls.__name__
        found.append((clean_path(path), name.rsplit(".", 1)[-1]))
    return found


def clean_path(path: str) -> str:
    """`L['self'].__dict__['_modules']['blocks'].0.attn` to `blocks.0.attn`."""
    dotted = re.sub(r"\[['\"]?([^'\"\]]+)['\"]?\]", r".\1", path)
    noise = {"", "L", "self", "__dict__", "_modules", "_orig_mod"}
    return ".".join(part for part in dotted.split(".") if part not in noise)


def common_module(nodes: Iterable[fx.Node]) -> tuple[str, str]:
    """Path and class of the deepest module that holds all nodes; `("", "")` without one."""
    common: list[tuple[str, str]] | None = None
    for node in nodes:
        stack = module_stack(node)
        if common is None:
            common = stack
        else:
            shared = [a for a, b in zip(common, stack, strict=False) if a == b]
            common = shared
    return common[-1] if common else ("", "")


def map_leaves(args: Any, fn: Callable[[Any], Any]) -> Any:
    """Apply `fn` to every leaf of nested lists, tuples, dictionaries and slices."""
    if isinstance(args, list | tuple):
        return type(args)(map_leaves(item, fn) for item in args)
    if isinstance(args, dict):
        return {key: map_leaves(item, fn) for key, item in args.items()}
    if isinstance(args, slice):
        return slice(*(map_leaves(part, fn) for part in (args.start, args.stop, args.step)))
    return fn(args)
