"""Apply token merging to pipelines, and remove it again."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

from toma_fx.config import TomaConfig
from toma_fx.diffusers.denoiser import CompiledCall
from toma_fx.diffusers.parallel import prepare_hooks
from toma_fx.diffusers.recipe import Recipe, recipe_of
from toma_fx.diffusers.regional import RegionalCall, check_blocks
from toma_fx.diffusers.status import GraphStatus, Status, status_of
from toma_fx.errors import ConfigError, PipelineError

T = TypeVar("T")

# What pipelines call their denoisers; the second transformer takes over at low noise.
_COMPONENTS = ("unet", "transformer", "transformer_2")
_SLOT = "_compiled_call_impl"  # where `nn.Module.compile` puts what it compiled


def apply(pipeline_or_model: T, config: TomaConfig | None = None, **compile_options: Any) -> T:
    """Compile the denoiser of a pipeline with token merging, in place.

    Nothing runs yet: the first call compiles, and so does the first at another resolution. A single
    item and the first other batch size may have a graph of their own, all further sizes share one.
    Prompts, seeds, guidance scales and step counts share what is compiled. Plans are forgotten
    where a picture begins, without waiting for the device.

    Pipelines that share a denoiser (`from_pipe`) may each be given, with configurations of their
    own: time, guidance and `merge_steps` follow the one that calls. Calls of one that was not
    given are merged as those of the first that was.

    Args:
        pipeline_or_model: a pipeline with a `unet` or a `transformer`, or a list of several, or
            such a model itself; a model alone has no scheduler, so that generations are told
            apart by its timestep.
        config: a `TokenMergingConfig`, or a `TomaConfig`; the default merges half of the tokens
            in every step.
        **compile_options: `fullgraph`, `dynamic`, `mode` and `options` as for `torch.compile`;
            `inner_backend` is among the options. `recompile_limit` (64) is the number of sizes
            that each graph may have, and of graphs for one size: a larger value takes memory, a
            few megabytes of plans a size, and behind it the plain model runs after a warning.
            `regional=True` compiles the blocks that repeat, each class once, instead of the whole
            denoiser, which is followed (`toma_fx.follow`): a cold compile takes a fraction of the
            time. A scope then ends with its block, and patterns are over paths inside a block.

    Returns:
        What was given.

    Raises:
        PipelineError: there is no denoiser, or it is compiled already; with `regional`, no block of
            it repeats.
        ConfigError: an option is unknown or out of range, one of `merge_steps`, `rest_every` and
            `dense_steps` is given without a scheduler, or one of the last two for a method that
            remembers nothing.

    Nothing is applied anywhere if anything is wrong.
    """
    recipe = recipe_of(config, compile_options)
    targets = _targets(pipeline_or_model)
    for target in targets:
        _check(target, recipe)
        for name, model in _denoisers(target).items():
            _refuse_applied(name, model, target)
    for target in targets:
        _install(target, recipe)
    return pipeline_or_model


def remove(pipeline_or_model: T) -> T:
    """Undo `apply`: the denoiser runs as it did before, and what was compiled is freed.

    Where another pipeline was given the same denoiser, that one stays merged. A model that is
    given itself is freed of all.

    Raises:
        PipelineError: token merging is not applied.
    """
    for target in _targets(pipeline_or_model):
        if not any(_removable(model, target) for model in _denoisers(target).values()):
            raise PipelineError(_not_applied(target))
    for target in _targets(pipeline_or_model):
        for model in _denoisers(target).values():
            if _removable(model, target):
                _remove(model, target)
    return pipeline_or_model


def enable(pipeline_or_model: T, config: TomaConfig | None = None, **compile_options: Any) -> T:
    """`apply`, in place of whatever configuration was applied before; see there.

    What was applied before stays if this fails.
    """
    recipe = recipe_of(config, compile_options)
    targets = _targets(pipeline_or_model)
    for target in targets:
        _check(target, recipe)
    for target in targets:
        _install(target, recipe)
    return pipeline_or_model


def disable(pipeline_or_model: T) -> T:
    """`remove` where token merging is applied; nothing otherwise."""
    for target in _targets(pipeline_or_model):
        if is_applied(target):
            remove(target)
    return pipeline_or_model


def is_applied(pipeline_or_model: object) -> bool:
    """Whether token merging was applied to this pipeline (to all of a list), or to this model.

    A pipeline that shares its denoiser with one that it was applied to was not given itself.
    """
    return all(
        any(_applied_to(model, target) for model in _denoisers(target).values())
        for target in _targets(pipeline_or_model)
    )


def status(pipeline_or_model: object) -> Status:
    """Whether a pipeline merges, graph by graph, and why not where it does not.

    Reads nothing from the device.

    Raises:
        PipelineError: there is no denoiser.
    """
    rows: list[GraphStatus] = []
    for name, model in _denoisers(pipeline_or_model).items():
        if (compiled := _compiled(model)) is not None:
            rows += status_of(name, compiled)
    return Status(is_applied(pipeline_or_model), tuple(rows))


def _targets(given: object) -> list[object]:
    """The pipelines of a list, or the only one."""
    targets = list(given) if isinstance(given, list | tuple) else [given]
    if not targets:
        raise PipelineError("there is no pipeline in the list")
    return targets


def _denoisers(target: object) -> dict[str, nn.Module]:
    if isinstance(target, nn.Module):
        return {"model": target}
    found = {name: getattr(target, name, None) for name in _COMPONENTS}
    models = {name: model for name, model in found.items() if isinstance(model, nn.Module)}
    if not models:
        raise PipelineError(
            f"{_kind(target)} has no unet and no transformer: pass the model that denoises"
        )
    return models


def _check(target: object, recipe: Recipe) -> None:
    alone = isinstance(target, nn.Module)
    if recipe.needs_steps and (alone or not hasattr(target, "scheduler")):
        raise ConfigError(
            f"{recipe.needs_steps} needs a pipeline with a scheduler: apply it to the pipeline"
        )
    for name, model in _denoisers(target).items():
        other = getattr(model, _SLOT, None) is not None and _compiled(model) is None
        if other or isinstance(model, torch._dynamo.OptimizedModule):
            raise PipelineError(
                f"{name} is compiled already, and apply compiles it: pass the model as it was "
                'before, or compile it yourself with backend="toma"'
            )
        if recipe.regional:
            check_blocks(model)
        compiled = _compiled(model)
        shared = compiled is not None and any(p is not target for p in compiled.pipelines)
        if shared and isinstance(compiled, RegionalCall) != recipe.regional:
            raise PipelineError(
                f"{name} is merged for another pipeline with regional={not recipe.regional}: "
                "give both the same"
            )


def _refuse_applied(name: str, model: nn.Module, target: object) -> None:
    if _applied_to(model, target):
        raise PipelineError(
            f"token merging is applied to {name} already: remove it first, or use enable"
        )


def _install(target: object, recipe: Recipe) -> None:
    for model in _denoisers(target).values():
        compiled = _compiled(model)
        kind = RegionalCall if recipe.regional else CompiledCall
        if type(compiled) is not kind:
            if compiled is not None:
                _remove(model, model)
            prepare_hooks(model)
            compiled = model.__dict__[_SLOT] = kind(model)
        compiled.add(None if target is model else target, recipe)


def _remove(model: nn.Module, target: object) -> None:
    compiled = _compiled(model)
    if compiled is None:
        return
    if target is model or compiled.alone or not compiled.drop(target):
        del model.__dict__[_SLOT]
        compiled.free()


def _compiled(model: nn.Module) -> CompiledCall | None:
    found = model.__dict__.get(_SLOT)
    return found if isinstance(found, CompiledCall) else None


def _applied_to(model: nn.Module, target: object) -> bool:
    compiled = _compiled(model)
    return compiled is not None and (target is model or compiled.applies_to(target))


def _removable(model: nn.Module, target: object) -> bool:
    """Also by whoever is left where the pipelines that were given are gone."""
    compiled = _compiled(model)
    return compiled is not None and (_applied_to(model, target) or not compiled.pipelines)


def _not_applied(target: object) -> str:
    shared = any(_compiled(model) is not None for model in _denoisers(target).values())
    if shared:
        return (
            f"token merging is not applied to this {_kind(target)}, but to another pipeline that "
            "shares its denoiser: remove it from that one, or pass the denoiser"
        )
    return f"token merging is not applied to this {_kind(target)}: nothing to remove"


def _kind(target: object) -> str:
    return type(target).__name__
