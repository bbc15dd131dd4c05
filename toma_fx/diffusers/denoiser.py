"""A denoiser that is compiled in place, and the choice of the graph at each call."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from toma_fx.backend import plain_backend, toma_backend
from toma_fx.config import TomaConfig
from toma_fx.diffusers.config import TokenMergingConfig
from toma_fx.diffusers.progress import Progress
from toma_fx.reuse import reset

# Denoisers whose pipelines run both halves of guidance as one batch, first the negative prompts.
# Others call twice, or have guidance as an input; pairing their items would mix pictures.
_BATCHES_GUIDANCE = ("UNet2DConditionModel", "SD3Transformer2DModel")


class CompiledCall:
    """Stands where `nn.Module.__call__` looks for a compiled forward.

    The module itself stays as it is. There are up to three graphs, each made where it is first
    needed: merged, merged with guidance in pairs, and plain.

    Args:
        model: the denoiser.
        config: what to merge.
        compile_options: for `torch.compile`: `fullgraph`, `dynamic`, `mode`, `options`.
        pipeline: tells generations, steps and guidance; None for a model of its own.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TokenMergingConfig,
        compile_options: dict[str, Any],
        pipeline: object | None,
    ) -> None:
        self.config = config
        self._model = model
        self._compile_options = compile_options
        self._progress = Progress(pipeline) if pipeline is not None else None
        self._graphs: dict[str, Callable[..., Any]] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._graph(self._choose(args, kwargs))(*args, **kwargs)

    def _choose(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        progress, config = self._progress, self.config
        if progress is None or progress.pipeline is None:
            return "merged"
        if progress.begins():
            reset(self._model)
        if not config.merges_always:
            start, end = config.merge_steps
            timestep = kwargs.get("timestep", args[1] if len(args) > 1 else None)
            if not start <= progress.fraction(timestep) < end:
                return "plain"
        if config.cfg_pairs is None and self._in_pairs(args, kwargs):
            return "merged in pairs"
        return "merged"

    def _in_pairs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether the batch of this call is two halves of guidance."""
        assert self._progress is not None
        pipeline = self._progress.pipeline
        latents = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
        return (
            type(self._model).__name__ in _BATCHES_GUIDANCE
            and isinstance(latents, torch.Tensor)
            and latents.shape[0] % 2 == 0
            and bool(getattr(pipeline, "do_classifier_free_guidance", False))
            # These add a third part to the batch, or a call with the positive half alone.
            and not getattr(pipeline, "do_perturbed_attention_guidance", False)
            and kwargs.get("skip_layers") is None
        )

    def _graph(self, which: str) -> Callable[..., Any]:
        if which not in self._graphs:
            given = self._compile_options
            compiler = {name: given[name] for name in ("mode", "options") if name in given}
            chosen = {name: given[name] for name in ("fullgraph", "dynamic") if name in given}
            backend: Callable[..., Any] = functools.partial(plain_backend, **compiler)
            if which != "plain":
                backend = self._merging_backend(True if which == "merged in pairs" else None)
            self._graphs[which] = torch.compile(_forward_of(self._model), backend=backend, **chosen)
        return self._graphs[which]

    def _merging_backend(self, pairs: bool | None) -> Callable[..., Any]:
        fields = {name: getattr(self.config, name) for name in TomaConfig.field_names()}
        fields["cfg_pairs"] = pairs or self.config.cfg_pairs
        options = {**fields, **(self._compile_options.get("options") or {})}
        mode = self._compile_options.get("mode")
        return functools.partial(toma_backend, mode=mode, options=options)


def _forward_of(model: nn.Module) -> Callable[..., Any]:
    """`model._call_impl`, which runs hooks and forward, with a code object of its own.

    Dynamo keeps its compiled graphs, and counts recompiles, by code object.
    """
    theirs = nn.Module._call_impl
    own = types.FunctionType(theirs.__code__.replace(), theirs.__globals__, theirs.__name__)
    return types.MethodType(own, model)
