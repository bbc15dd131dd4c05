"""What three engines do between loading a denoiser and its first step, by their own names.

Signatures, and the order and arguments of the calls, are those of the sources that docs/engines.md
names; all else is left out.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tests.apart import Block, Denoiser, picture, run
from tests.helpers import Attention
from toma_fx.engines.wrapping import Method


class Pipeline:
    """Of an engine: a text encoder beside the denoiser."""

    def __init__(self) -> None:
        self.transformer: Any = Denoiser()
        self.encoder = Attention()


class DiffusionModelRunner:
    """vLLM-Omni: blocks, unless it is told otherwise, by their `forward`."""

    def __init__(self, vllm_config: Any, od_config: Any, device: torch.device) -> None:
        self.od_config = od_config
        self.pipeline: Any = None

    def load_model(
        self,
        memory_pool_context_fn: Callable[..., Any] | None = None,
        load_format: str = "default",
        custom_pipeline_name: str | None = None,
    ) -> None:
        if load_format == "dummy":
            return
        self.pipeline = Pipeline()
        if not self.od_config.enforce_eager:
            self.pipeline.encoder = torch.compile(self.pipeline.encoder)
            for name in ("transformer", "transformer_2"):
                self._compile_transformer(name)

    def _compile_transformer(self, attr_name: str) -> None:
        model = getattr(self.pipeline, attr_name, None)
        if model is None:
            return
        if self.od_config.diffusion_compile_granularity == "full":
            model.compile(dynamic=self.od_config.diffusion_compile_dynamic)
            return
        for module in model.modules():
            if isinstance(module, Block):
                compiled = torch.compile(
                    module.forward, dynamic=self.od_config.diffusion_compile_dynamic
                )
                module.forward = compiled  # type: ignore[method-assign]


class DenoisingStage:
    """SGLang-diffusion: the whole, or with `regional_compile` what conditions match."""

    def __init__(self, transformer: nn.Module, server_args: Any) -> None:
        self.transformer, self.server_args = transformer, server_args
        self._maybe_torch_compile(transformer)

    def _maybe_torch_compile(self, module: object) -> None:
        if self.server_args.enable_breakable_cuda_graph:
            return
        if not self.server_args.enable_torch_compile or not isinstance(module, nn.Module):
            return
        kwargs: dict[str, Any] = {"fullgraph": False, "dynamic": None, "mode": "default"}
        if self.server_args.regional_compile:
            for part in (part for part in module.modules() if isinstance(part, Block)):
                part.compile(**kwargs)
        else:
            module.compile(**kwargs)


class XFuserModel:
    """xDiT: the whole, or lists of blocks where they are sharded, and a warm-up of two steps."""

    def __init__(self, config: Any) -> None:
        self.config, self.pipe = config, None

    def initialize(self, input_args: dict[str, Any]) -> None:
        self.pipe = self._load_model()
        if self.config.use_torch_compile:
            self._compile_model(copy.deepcopy(input_args))

    def _load_model(self) -> Any:
        return Pipeline()

    def _compile_model(self, input_args: dict[str, Any]) -> None:
        component: Any = self.pipe.transformer  # type: ignore[attr-defined]
        if self.config.fully_shard_degree > 1:
            for blocks in (component.blocks, component.others):
                for i in range(len(blocks)):
                    blocks[i] = torch.compile(blocks[i], mode="default", dynamic=None)
        else:
            compiled = torch.compile(component, mode="default", dynamic=None)
            self.pipe.transformer = compiled  # type: ignore[attr-defined]
        run(self.pipe.transformer, picture(7, steps=2))  # type: ignore[attr-defined]


def install(patch: pytest.MonkeyPatch, method: Method, stand_in: type | None) -> type | None:
    """Have a class, or an empty module where there is none, found where a method is looked for.

    Returns:
        A class of its own, since methods of it will be wrapped.
    """
    module = ModuleType(method.module)
    fresh = None
    if stand_in is not None:
        own = {k: v for k, v in vars(stand_in).items() if k not in ("__dict__", "__weakref__")}
        fresh = type(method.owner, (), own)
        setattr(module, method.owner, fresh)
    patch.setitem(sys.modules, method.module, module)
    return fresh


def omni_config(**changes: Any) -> Any:
    given = {
        "enforce_eager": False,
        "diffusion_compile_granularity": "regional",
        "diffusion_compile_dynamic": True,
    }
    return SimpleNamespace(**{**given, **changes})


def server_args(**changes: Any) -> Any:
    given = {
        "enable_torch_compile": True,
        "regional_compile": False,
        "enable_breakable_cuda_graph": False,
    }
    return SimpleNamespace(**{**given, **changes})


def xfuser_args(**changes: Any) -> Any:
    return SimpleNamespace(**{"use_torch_compile": True, "fully_shard_degree": 1, **changes})
