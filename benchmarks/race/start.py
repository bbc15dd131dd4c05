"""From a contestant to something that runs a step.

Whatever a contestant cannot do on a model, a machine or this version of toma_fx is a `SkipError`
with its reason, which the table shows.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import toma_fx
from benchmarks.race.models import twin
from benchmarks.race.pace import Phases, alternating, scheduled, steady
from toma_fx.compiler import inductor_options
from toma_fx.config import split_options
from toma_fx.errors import ConfigError

FINEST = 1 / 128  # of a schedule: exact in bfloat16, where a smaller step would be none


class SkipError(Exception):
    """A contestant does not take part; the message says why."""


@dataclass(frozen=True)
class Setting:
    """A model and the arguments of its steps.

    Attributes:
        model: shared by all contestants.
        device: where it runs.
        first: latents, for steps in pairs: a cache that compares steps serves every other one.
        rest: the other arguments by name, without the timestep.
        timestep: of the model's shape and type, that of a first step.
        backend: of `torch.compile`, and what compiles the merged graph.
    """

    model: nn.Module
    device: torch.device
    first: tuple[Tensor, Tensor]
    rest: dict[str, Any]
    timestep: Tensor
    backend: str = "inductor"

    def arguments(self, step: int) -> tuple[Tensor, dict[str, Any]]:
        """Of a step of one picture: the timestep falls."""
        timestep = self.timestep * (1 - FINEST * step)
        return self.first[step // 2 % 2], {**self.rest, "timestep": timestep}


def setting_of(
    model: nn.Module, inputs: dict[str, Any], device: torch.device, backend: str = "inductor"
) -> Setting:
    """From the keyword arguments of one call; the latents come first in all models."""
    (_, latents), *others = inputs.items()
    rest = {name: value for name, value in others if name != "timestep"}
    timestep = inputs["timestep"]
    whole = 1024.0 if float(timestep.flatten()[0]) > 1 else 1.0  # powers of two stay exact
    pair = (latents, torch.randn_like(latents))
    return Setting(model, device, pair, rest, torch.full_like(timestep, whole), backend)


@dataclass
class Entry:
    """A contestant that has started.

    Attributes:
        step: runs one step by its number.
        phases: of its steps.
        report: of the passes, read after the first step.
        check: read after the first step: raises `SkipError` where the contestant does nothing.
        notes: for the table; filled by the first step.
    """

    step: Callable[[int], Any]
    phases: Phases = steady
    report: toma_fx.Report | None = None
    check: Callable[[Entry], None] = lambda entry: None
    notes: list[str] = field(default_factory=list)


def start(setting: Setting, how: str, options: dict[str, Any], ratio: float | None) -> Entry:
    """A contestant on a setting; its first step compiles.

    Raises:
        SkipError: it cannot take part.
    """
    return STARTS[how](setting, dict(options), ratio)


def _eager(setting: Setting, options: dict[str, Any], ratio: float | None) -> Entry:
    return Entry(_steps(setting, _fresh_step(), setting.model))


def _compile(setting: Setting, options: dict[str, Any], ratio: float | None) -> Entry:
    if "mode" not in options:  # a mode is Inductor's
        options.setdefault("backend", setting.backend)
    compiled = torch.compile(_fresh_step(), fullgraph=True, dynamic=False, **options)
    return Entry(_steps(setting, compiled, setting.model))


def _toma(setting: Setting, options: dict[str, Any], ratio: float | None) -> Entry:
    mode = options.pop("mode", None)
    fields = {"ratio": ratio, "regions": "all", **options}
    if mode is None:
        fields.setdefault("inner_backend", setting.backend)
    config = _config(fields)
    inner = torch._inductor.list_mode_options(mode) if mode else {}
    compiled = torch.compile(
        _fresh_step(), backend="toma", fullgraph=True, dynamic=False, options={**fields, **inner}
    )
    planned = getattr(config, "method", "toma") == "toma"
    phases = scheduled(config.select_every, config.weigh_every) if planned else steady
    return Entry(_steps(setting, compiled, setting.model), phases, check=_merged_something)


def _merged_something(entry: Entry) -> None:
    entry.report = report = toma_fx.last_report()
    if not report.merged:
        reasons = [region.reason for region in report.regions] + report.notes
        raise SkipError(f"nothing merged: {(reasons or ['no region found'])[0]}")
    entry.notes.append(f"{len(report.merged)} of {len(report.regions)} regions merged")


def _config(fields: dict[str, Any]) -> toma_fx.TomaConfig:
    try:
        return split_options(fields, ("inner_backend", *inductor_options()))[0]
    except ConfigError as error:
        raise SkipError(str(error)) from error


def _cache(setting: Setting, options: dict[str, Any], ratio: float | None) -> Entry:
    """diffusers' first-block cache over compiled blocks.

    The cache reads a difference on the host at each step, which no graph can hold: what is
    compiled is each block, as in diffusers' `compile_repeated_blocks`. How often a cache serves
    depends on trained weights; the latents here change every other step, and the threshold lies
    between what that changes and what a timestep does, so that it serves half.
    """
    from diffusers.hooks import FirstBlockCacheConfig

    model = twin(setting.model)
    stacks = [part for part in model.children() if isinstance(part, nn.ModuleList)]
    if not hasattr(model, "enable_cache"):
        raise SkipError("the cache needs transformer blocks at the top level of the model")
    blocks = [block for stack in stacks for block in stack]
    for block in blocks:
        compiled = torch.compile(
            block.forward, fullgraph=True, dynamic=False, backend=setting.backend
        )
        block.forward = compiled
    ran: list[None] = []  # an entry for each time that the last block computes
    last = blocks[-1].forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        ran.append(None)
        return last(*args, **kwargs)

    blocks[-1].forward = counted
    model.enable_cache(FirstBlockCacheConfig(**options))
    steps = _steps(setting, _fresh_step(), model)
    entry = Entry(steps, alternating)
    taken: list[int] = []

    def step(number: int) -> Any:
        if number == 0:
            model._reset_stateful_cache()
        taken.append(number)
        with model.cache_context("step"):
            result = steps(number)
        entry.notes[:] = [f"computes {len(ran)} of {len(taken)} steps"]
        return result

    entry.step = step
    return entry


def _tomesd(setting: Setting, options: dict[str, Any], ratio: float | None) -> Entry:
    """The package as published; `max_downsample` such that it acts at every level.

    Deterministic, so that a compiler has no random numbers to stumble over.
    """
    try:
        import tomesd
    except ImportError as error:
        raise SkipError("tomesd is not installed: pip install tomesd==0.1.3") from error
    compiled = options.pop("compiled")
    model = twin(setting.model)
    blocks = [m for m in model.modules() if type(m).__name__ == "BasicTransformerBlock"]
    if not blocks:
        raise SkipError("tomesd patches UNets: there is no BasicTransformerBlock here")
    tomesd.apply_patch(model, ratio=ratio, max_downsample=8, use_rand=False, **options)
    entry = Entry(_steps(setting, _fresh_step(), model))
    shortened = _shortened(entry.step, blocks)
    if not shortened:
        raise SkipError("tomesd merged nothing: attention sees as many tokens as without it")
    entry.notes.append(f"{shortened} of {len(blocks)} blocks merged")
    if compiled:
        entry.step = _steps(
            setting, torch.compile(_fresh_step(), dynamic=False, backend=setting.backend), model
        )
    return entry


def _shortened(step: Callable[[int], Any], blocks: list[nn.Module]) -> int:
    """How many blocks hand their attention fewer tokens than they were given."""
    given: dict[int, int] = {}
    shorter: list[int] = []

    def at_block(place: int, block: nn.Module, args: Any, kwargs: Any) -> None:
        given[place] = (args[0] if args else kwargs["hidden_states"]).shape[1]

    def at_attention(place: int, attention: nn.Module, args: Any) -> None:
        shorter.append(args[0].shape[1] < given[place])

    hooks = []
    for place, block in enumerate(blocks):
        hooks.append(block.register_forward_pre_hook(partial(at_block, place), with_kwargs=True))
        hooks.append(block.attn1.register_forward_pre_hook(partial(at_attention, place)))
    step(0)
    for hook in hooks:
        hook.remove()
    return sum(shorter)


def _steps(setting: Setting, run: Callable[..., Any], model: nn.Module) -> Callable[[int], Any]:
    def step(number: int) -> Any:
        return run(model, *setting.arguments(number))

    return step


def _fresh_step() -> Callable[..., Any]:
    """A function with a code object of its own: Dynamo keeps its caches on code objects."""

    def step(model: Any, first: Any, rest: Any) -> Any:
        return model(first, **rest)[0]

    return types.FunctionType(step.__code__.replace(), globals())


STARTS: dict[str, Callable[[Setting, dict[str, Any], float | None], Entry]] = {
    "eager": _eager,
    "compile": _compile,
    "toma": _toma,
    "tomesd": _tomesd,
    "cache": _cache,
}
