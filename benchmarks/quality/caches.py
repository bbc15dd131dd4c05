"""Caches of whole steps, as diffusers ships them, and DeepCache, on a copy of a denoiser.

    taylorseer        diffusers' TaylorSeerCacheConfig on every attention and MLP: all of them are
                      computed in some steps and extrapolated in the others (order 0: kept)
    taylorseer lite   its lite mode: no block runs then, and the output is extrapolated
    first block       FirstBlockCacheConfig: the first block decides whether the others run
    magcache          MagCacheConfig: calibrated ratios decide
    fastercache       FasterCacheConfig, the part of it that guidance in one batch allows: attention
                      is mixed from two earlier ones, MLPs are always computed
    deepcache         the deep features of a UNet are kept; see `deepcache`

They decide on the host, so that no graph can hold the whole model: what a hook wraps and what lies
between is compiled part by part, and hooks run in Python as they do for a user.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import diffusers.hooks
import torch
from torch import nn

from benchmarks.quality.contestant import Cache
from benchmarks.quality.deepcache import DeepCache
from benchmarks.quality.generations import Generations
from benchmarks.quality.own import Codes, compile_in_place, compiled, own
from benchmarks.quality.painters import Cast, Painter
from toma_fx import TomaConfig
from toma_fx.backend import toma_backend
from toma_fx.diffusers import apply

_REGIONS = (  # their outputs are what is added to the residual stream, before any gate
    r".*transformer_blocks\.\d+\.(attn1|attn2|ff)",  # of UNets
    r"transformer_blocks\.\d+\.(attn|ff|ff_context)",
    r"single_transformer_blocks\.\d+\.proj_out",
)
_SKIPPED = (r"single_transformer_blocks\.\d+\.(attn|proj_mlp)",)  # they only feed `proj_out`
_GENERATION = "generation"
_SHAPES = 64  # in which parts of one class may come

Hook = Callable[[nn.Module, dict[str, Any], Painter, int], None]
"""Denoiser, options, painter, steps of a generation."""


def _taylorseer(model: nn.Module, options: dict[str, Any], painter: Painter, steps: int) -> None:
    from diffusers.hooks import TaylorSeerCacheConfig, apply_taylorseer_cache

    named = {"cache_identifiers": [*_REGIONS], "skip_predict_identifiers": [*_SKIPPED]}
    if options.pop("lite", False):
        named = {"use_lite_mode": True}
    config = TaylorSeerCacheConfig(taylor_factors_dtype=torch.float32, **named, **options)
    apply_taylorseer_cache(model, config)


def _lite(model: nn.Module, options: dict[str, Any], painter: Painter, steps: int) -> None:
    _taylorseer(model, {**options, "lite": True}, painter, steps)


def _first_block(model: nn.Module, options: dict[str, Any], painter: Painter, steps: int) -> None:
    from diffusers.hooks import FirstBlockCacheConfig

    model.enable_cache(FirstBlockCacheConfig(**options))


def _magcache(model: nn.Module, options: dict[str, Any], painter: Painter, steps: int) -> None:
    from diffusers.hooks import MagCacheConfig

    model.enable_cache(MagCacheConfig(**{"num_inference_steps": steps, **options}))


def _fastercache(model: nn.Module, options: dict[str, Any], painter: Painter, steps: int) -> None:
    from diffusers.hooks import FasterCacheConfig

    scheduler = painter.pipeline.scheduler
    model.enable_cache(
        FasterCacheConfig(
            current_timestep_callback=lambda: scheduler.timesteps[scheduler.step_index or 0],
            spatial_attention_timestep_skip_range=(-1, 999),  # the first step has nothing to mix
            is_guidance_distilled=True,  # halves of a batch are not told apart: neither is skipped
            attention_weight_callback=lambda module: 0.5,
            **options,
        )
    )


HOOKS: dict[str, tuple[str, Hook]] = {
    "taylorseer": ("TaylorSeerCacheConfig", _taylorseer),
    "taylorseer lite": ("TaylorSeerCacheConfig", _lite),
    "first block": ("FirstBlockCacheConfig", _first_block),
    "magcache": ("MagCacheConfig", _magcache),
    "fastercache": ("FasterCacheConfig", _fastercache),
}
"""The class of diffusers behind each kind, and what applies it."""


def refused(cache: Cache | None, model: nn.Module | None) -> str | None:
    """Why a cache cannot be had for a denoiser; None where it can, or where nobody can tell."""
    if cache is None or model is None:
        return None
    core = core_of(model)
    if cache.kind == "deepcache":
        return None if hasattr(core, "up_blocks") else "deepcache is for a UNet"
    config, _ = HOOKS[cache.kind]
    if not hasattr(diffusers.hooks, config):
        return f"diffusers {diffusers.__version__} has no {config}"
    if cache.kind != "taylorseer" and not hasattr(core, "enable_cache"):
        return f"diffusers gives {type(core).__name__} no enable_cache"
    return None


@contextmanager
def cached(
    painter: Painter,
    cache: Cache,
    steps: int,
    backend: str,
    merging: dict[str, Any] | None = None,
) -> Iterator[nn.Module]:
    """A copy of the painter's denoiser behind a cache.

    Args:
        painter: of the model.
        cache: its threshold must be settled.
        steps: of a generation.
        backend: that compiles it in parts, or the rewritten graphs.
        merging: options of token merging: in the full steps of deepcache, whose graph is whole;
            else in every block that the cache lets run, compiled apart.
    """
    assert cache.share is None
    core = copy.deepcopy(core_of(painter.denoiser))
    if cache.kind == "deepcache":
        options = {**(merging or {}), "inner_backend": backend}
        merged = None if merging is None else functools.partial(toma_backend, options=options)
        generations = Generations(painter.pipeline)
        deep = DeepCache(core, generations, backend, full_backend=merged, **cache.options)
        yield _in_place_of(deep.model, painter.denoiser)
        return
    _, hook = HOOKS[cache.kind]
    hook(core, dict(cache.options), painter, steps)
    if merging is None:
        _compile_parts(core, backend, {})
    else:
        apply(core, TomaConfig(**merging), regional=True, options={"inner_backend": backend})
    with ExitStack() as stack:
        stack.enter_context(torch._dynamo.config.patch(recompile_limit=_SHAPES))
        _follow(core, painter, stack)
        yield _in_place_of(core, painter.denoiser)


def core_of(denoiser: nn.Module) -> nn.Module:
    """The class of diffusers in a painter's denoiser."""
    return denoiser.model if isinstance(denoiser, Cast) else denoiser


def _in_place_of(core: nn.Module, denoiser: nn.Module) -> nn.Module:
    return Cast(core, denoiser.dtype) if isinstance(denoiser, Cast) else core


def _follow(core: nn.Module, painter: Painter, stack: ExitStack) -> None:
    """Each generation begins with an empty cache, as pipelines of diffusers leave theirs."""
    from diffusers.models.cache_utils import CacheMixin

    generations = Generations(painter.pipeline)

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not generations.begins():
            return
        CacheMixin._reset_stateful_cache(core)
        if not painter.names_calls:
            stack.enter_context(CacheMixin.cache_context(core, _GENERATION))

    core.register_forward_pre_hook(begin, with_kwargs=True)


def _compile_parts(module: nn.Module, backend: str, codes: Codes) -> None:
    """Compile what hooks wrap, and the largest parts without a hook, each by itself.

    Parts of one class share their graphs; a single layer gains nothing by itself.
    """
    for child in module.children():
        below = any(_hooks(part) for part in child.modules() if part is not child)
        if below or isinstance(child, nn.ModuleList):
            _compile_parts(child, backend, codes)
        elif _hooks(child):
            theirs = child._diffusers_hook._fn_refs[0]
            theirs.original_forward = compiled(theirs.original_forward, backend, codes)
        elif any(child.children()):
            child.forward = own(child.forward, codes)
            compile_in_place(child, backend)


def _hooks(module: nn.Module) -> bool:
    registry = getattr(module, "_diffusers_hook", None)
    return registry is not None and bool(registry.hooks)
