"""SGLang-diffusion: a stage of the pipeline compiles the transformer that it denoises with.

`DenoisingStage._maybe_torch_compile(module)` compiles the whole transformer, or with
`--regional-compile` its blocks, by `module.compile(fullgraph=False, dynamic=None, mode=...)`. No
backend is named but on platforms that bring their own. Entry points of
`sglang.multimodal_gen.plugins` are called in every process, before it imports its runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from toma_fx.engines.door import asked, backend_with, compiling_with, tell_plain
from toma_fx.engines.wrapping import Method, wrap
from toma_fx.following import follow

COMPILE = Method(
    "SGLang-diffusion",
    "sglang.multimodal_gen.runtime.pipelines_core.stages.denoising",
    "DenoisingStage",
    "_maybe_torch_compile",
    "0.5.23",
)


def register() -> None:
    """The entry point: `enable` with the options in `TOMA_FX`; nothing where it is unset."""
    options = asked()
    if options is not None:
        enable(options)


def enable(options: Mapping[str, Any] | None = None) -> None:
    """Merge the transformers that stages in this process compile from now on.

    Args:
        options: as `torch.compile(backend="toma", options=...)` takes them.

    Raises:
        ConfigError: an option is unknown or out of range.
        EngineError: SGLang has not the method that is wrapped.
    """
    backend = backend_with(options or {})

    def compile_module(plain: Callable[..., Any], stage: Any, module: object) -> Any:
        given = stage.server_args
        if isinstance(module, nn.Module):
            follow(module)
            if not getattr(given, "enable_torch_compile", False):
                tell_plain(COMPILE.engine, "Start it with --enable-torch-compile")
            elif getattr(given, "enable_breakable_cuda_graph", False):
                tell_plain(COMPILE.engine, "Start it without breakable CUDA graphs")
        with compiling_with(backend):
            return plain(stage, module)

    wrap(COMPILE, compile_module)
