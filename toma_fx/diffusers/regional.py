"""A denoiser whose repeated blocks are compiled, each class once, instead of the whole.

The denoiser itself runs as it is, and is followed (`toma_fx.follow`). Its call chooses a graph as
where the whole is compiled, merged, in pairs or plain; the blocks inside run that of their class.
Hooks around a block, a cache's, stay outside of it.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from toma_fx.arguments import Arguments, Call, as_contiguous
from toma_fx.diffusers.denoiser import CompiledCall
from toma_fx.diffusers.graphs import (
    PLAIN,
    RESTING,
    Graph,
    Kind,
    Shared,
    Variant,
    call_with_hooks,
)
from toma_fx.diffusers.hooks import put_inside, take_out
from toma_fx.diffusers.recipe import Recipe, changed
from toma_fx.dynamo import forget
from toma_fx.eager_guard import Schedule
from toma_fx.errors import PipelineError
from toma_fx.following import Computed, follow, is_followed, resting, unfollow, unfollowed
from toma_fx.owners import NothingRemembered
from toma_fx.told import Told

_SLOT = "_compiled_call_impl"


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The blocks of a denoiser that repeat, in order; none lies in another.

    Those of the classes that the model names (`_repeated_blocks`, of diffusers), else the elements
    of its lists of modules of one class with linears in them, two or more.
    """
    named = getattr(model, "_repeated_blocks", None) or ()
    found = [m for m in model.modules() if type(m).__name__ in named]
    if not found:
        lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and _repeats(m)]
        found = [block for one in lists for block in one]
    inner = {part for block in found for part in block.modules() if part is not block}
    return [block for block in dict.fromkeys(found) if block not in inner]


def _repeats(blocks: nn.ModuleList) -> bool:
    same = len(blocks) > 1 and len({type(block) for block in blocks}) == 1
    return same and any(isinstance(part, nn.Linear) for part in blocks[0].modules())


def check_blocks(model: nn.Module) -> None:
    """Whether the blocks of a denoiser can be compiled in place.

    Raises:
        PipelineError: it has none that repeat, or one of them is compiled already.
    """
    blocks = blocks_of(model)
    if not blocks:
        kind = type(model).__name__
        raise PipelineError(f"{kind} has no blocks that repeat: apply without regional")
    held = [block.__dict__.get(_SLOT) for block in blocks]
    if any(call is not None and not isinstance(call, _BlockCall) for call in held):
        raise PipelineError(
            "blocks of the denoiser are compiled already: pass the model as it was before"
        )


class RegionalCall(CompiledCall):
    """Stands where `nn.Module.__call__` looks for a compiled forward; the model runs as it is.

    Args:
        model: the denoiser, for which `check_blocks` found nothing wrong.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.blocks = blocks_of(model)
        self._follows = not is_followed(model)  # else it is somebody else's to undo
        follow(model)
        numbers: Counter[type] = Counter()
        for block in self.blocks:
            block.__dict__[_SLOT] = _BlockCall(block, numbers[type(block)])
            numbers[type(block)] += 1

    def free(self) -> None:
        super().free()
        for block in self.blocks:
            block.__dict__.pop(_SLOT, None)
            take_out(block)
        if self._follows:
            unfollow(self._model)

    def _for_dynamo(self, call: Call, kind: Kind) -> Call:
        return call  # it sees those of the blocks

    def _new_graph(self, kind: Kind, recipe: Recipe, like: Graph | None) -> Graph:
        shared = like.shared if like is not None else None
        return RegionalGraph(kind, recipe, shared, self._arguments)


class RegionalGraph(Graph):
    """One way to run the blocks of a denoiser, for pictures of each size.

    Two of as many tokens look alike to a block, but their windows lie elsewhere.
    """

    def __init__(
        self, kind: Kind, recipe: Recipe, shared: Shared | None, arguments: Arguments
    ) -> None:
        super().__init__(kind, recipe, shared)
        self._arguments = arguments

    def _key(self, call: Call) -> Hashable:
        return Told(self._arguments, call, None).sides() if self.kind != PLAIN else None

    def _new_variant(self, key: Hashable) -> Variant:
        return RegionalVariant(self.kind, self._recipe, self.shared, key)


class RegionalVariant(Variant):
    """Compiled code for each class of blocks.

    Args:
        kind: of the graph.
        recipe: how it is compiled.
        shared: with the recipe's other graphs.
        sides: by which pictures of this one are known in it.
    """

    def __init__(self, kind: Kind, recipe: Recipe, shared: Shared, sides: Hashable) -> None:
        self._shared, self._sides = shared, sides
        self._of_class: dict[tuple[type, bool, bool], Callable[..., Any]] = {}
        self._functions: list[Callable[..., Any]] = []
        self._asked = 0
        self._arguments = Arguments(nn.Identity())
        super().__init__(kind, recipe, [])

    def __call__(self, model: nn.Module, call: Call) -> Any:
        computed = self._computed(model, call)
        if self.kind == RESTING and not (computed is not None and computed.knows()):
            raise NothingRemembered  # before any block has counted the call
        runs, asked = self._runs, self._asked
        with _running(self), _HOW.get(self.kind, nullcontext)():
            result = model._call_impl(*call[0], **call[1])
        if computed is not None and self.kind != RESTING:
            computed.add()
        self._tell_bypassed(self._asked > asked and self._runs == runs)
        return result

    def _computed(self, model: nn.Module, call: Call) -> Computed | None:
        """Under which conditionings blocks have computed; None where no step needs to know."""
        if self._config is None or not self.recipe.rests_at_all:
            return None
        return follow(model).computed(Schedule.of(self._config), call)

    def run(self, block: nn.Module, number: int, call: Call, hooked: bool = False) -> Any:
        """Run a block, the so-many-th of its class; without its hooks, where they run already."""
        self._asked += 1
        merges = self.kind != PLAIN and number >= self.recipe.config.skip_blocks
        key = type(block), merges, hooked
        if key not in self._of_class:
            # Which blocks are the first is known here alone.
            config = changed(self._config, skip_blocks=0) if merges and self._config else None
            kind, calls = self.kind if merges else PLAIN, _forward if hooked else call_with_hooks
            shared = self._shared.setdefault((self._sides, key), [])
            function, self._of_class[key] = self._compile(kind, config, shared, calls)
            self._functions.append(function)
        args, kwargs = self._arguments.for_dynamo(as_contiguous(call), merges)
        return self._of_class[key](block, *args, **kwargs)

    def free(self) -> None:
        super().free()
        for function in self._functions:
            forget(function)
        self._of_class.clear()


class _BlockCall:
    """Stands where a block's `__call__` looks for a compiled forward."""

    def __init__(self, block: nn.Module, number: int) -> None:
        self._block = weakref.ref(block)
        self._number = number

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        block, running = self._block(), _variant.get()
        assert block is not None
        if running is None or torch.compiler.is_compiling():
            return block._call_impl(*args, **kwargs)
        if put_inside(block, self._inside):
            return block._call_impl(*args, **kwargs)
        return running.run(block, self._number, (args, kwargs))

    def _inside(self) -> Callable[..., Any] | None:
        """What the block's hooks call."""
        block, running = self._block(), _variant.get()
        if block is None or running is None:
            return None
        return lambda *args, **kwargs: running.run(block, self._number, (args, kwargs), hooked=True)


def _forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    # Paths of modules begin behind the name `self`.
    return type(self).forward(self, *args, **kwargs)


_HOW: dict[Kind, Callable[[], AbstractContextManager[None]]] = {
    PLAIN: unfollowed,
    RESTING: resting,
}
"""What a followed model is told of calls that are no usual ones."""

_variant: ContextVar[RegionalVariant | None] = ContextVar("toma_fx variant", default=None)


@contextmanager
def _running(variant: RegionalVariant) -> Iterator[None]:
    before = _variant.set(variant)
    try:
        yield
    finally:
        _variant.reset(before)
