"""Apply token merging to a pipeline, and remove it again."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

from toma_fx.config import TomaConfig, closest
from toma_fx.diffusers.config import TokenMergingConfig
from toma_fx.diffusers.denoiser import CompiledCall
from toma_fx.errors import ConfigError, PipelineError

T = TypeVar("T")

# What pipelines call their denoisers; the second transformer takes over at low noise.
_COMPONENTS = ("unet", "transformer", "transformer_2")
_COMPILE_OPTIONS = ("fullgraph", "dynamic", "mode", "options")
_SLOT = "_compiled_call_impl"  # where `nn.Module.compile` puts what it compiled


def apply(pipeline_or_model: T, config: TomaConfig | None = None, **compile_options: Any) -> T:
    """Compile the denoiser of a pipeline with token merging, in place.

    Nothing runs yet: the first call compiles, and so does the first at another resolution or
    batch size. Prompts, seeds, guidance scales and step counts share what is compiled. Plans are
    forgotten where a generation begins, without waiting for the device.

    Args:
        pipeline_or_model: a pipeline with a `unet` or a `transformer`, or such a model itself;
            a model alone has no scheduler, so that generations are told apart by its timestep.
        config: a `TokenMergingConfig`, or a `TomaConfig`; the default merges half of the tokens
            in every step.
        **compile_options: `fullgraph`, `dynamic`, `mode` and `options` as for `torch.compile`;
            `inner_backend` is among the options.

    Returns:
        What was given.

    Raises:
        PipelineError: there is no denoiser, or it is compiled already.
        ConfigError: an option is unknown, or `merge_steps` is given without a scheduler.
    """
    config = _widened(config or TokenMergingConfig())
    _check(compile_options)
    models = _denoisers(pipeline_or_model)
    alone = isinstance(pipeline_or_model, nn.Module)
    if not config.merges_always and (alone or not hasattr(pipeline_or_model, "scheduler")):
        raise ConfigError("merge_steps needs a pipeline with a scheduler: apply it to the pipeline")
    for name, model in models.items():
        _refuse_compiled(name, model)
    for model in models.values():
        pipeline = None if alone else pipeline_or_model
        model.__dict__[_SLOT] = CompiledCall(model, config, dict(compile_options), pipeline)
    return pipeline_or_model


def remove(pipeline_or_model: T) -> T:
    """Undo `apply`: the denoiser runs as it did before, and what was compiled is dropped.

    Raises:
        PipelineError: token merging is not applied.
    """
    applied = [m for m in _denoisers(pipeline_or_model).values() if _applied_to(m)]
    if not applied:
        raise PipelineError(
            f"token merging is not applied to this {_kind(pipeline_or_model)}: nothing to remove"
        )
    for model in applied:
        del model.__dict__[_SLOT]
    return pipeline_or_model


def enable(pipeline_or_model: T, config: TomaConfig | None = None, **compile_options: Any) -> T:
    """`apply`, in place of whatever configuration was applied before; see there."""
    disable(pipeline_or_model)
    return apply(pipeline_or_model, config, **compile_options)


def disable(pipeline_or_model: T) -> T:
    """`remove` where token merging is applied; nothing otherwise."""
    return remove(pipeline_or_model) if is_applied(pipeline_or_model) else pipeline_or_model


def is_applied(pipeline_or_model: object) -> bool:
    """Whether token merging is applied to a denoiser of the pipeline."""
    return any(_applied_to(model) for model in _denoisers(pipeline_or_model).values())


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


def _refuse_compiled(name: str, model: nn.Module) -> None:
    if _applied_to(model):
        raise PipelineError(
            f"token merging is applied to {name} already: remove it first, or use enable"
        )
    if isinstance(model, torch._dynamo.OptimizedModule) or getattr(model, _SLOT, None) is not None:
        raise PipelineError(
            f"{name} is compiled already, and apply compiles it: pass the model as it was "
            'before, or compile it yourself with backend="toma"'
        )


def _applied_to(model: nn.Module) -> bool:
    return isinstance(model.__dict__.get(_SLOT), CompiledCall)


def _widened(config: TomaConfig) -> TokenMergingConfig:
    if isinstance(config, TokenMergingConfig):
        return config
    if not isinstance(config, TomaConfig):
        raise ConfigError(f"config must be a TokenMergingConfig or a TomaConfig, not {config!r}")
    return TokenMergingConfig(**{name: getattr(config, name) for name in config.field_names()})


def _check(compile_options: dict[str, Any]) -> None:
    for name in compile_options:
        if name not in _COMPILE_OPTIONS:
            hint = closest(name, _COMPILE_OPTIONS)
            raise ConfigError(
                f"unknown option {name!r}{hint}; fields of TokenMergingConfig go into config, "
                "options of the compiler into options"
            )


def _kind(target: object) -> str:
    return type(target).__name__
