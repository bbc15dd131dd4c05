"""vLLM-Omni: its diffusion workers compile the blocks of what they have loaded.

`DiffusionModelRunner.load_model` loads a pipeline, then compiles what its `_dit_modules` name, or
`transformer` and `transformer_2`, by `torch.compile(block.forward, dynamic=...)`, or has the
pipeline do it (`setup_compile`). No backend is named. Entry points of `vllm_omni.general_plugins`
are called in every process before that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from toma_fx.engines.door import asked, backend_with, compiling_with, follow_in, tell_plain
from toma_fx.engines.wrapping import Method, wrap

LOAD = Method(
    "vLLM-Omni",
    "vllm_omni.diffusion.worker.diffusion_model_runner",
    "DiffusionModelRunner",
    "load_model",
    "0.30.0",
)


def register() -> None:
    """The entry point: `enable` with the options in `TOMA_FX`; nothing where it is unset."""
    options = asked()
    if options is not None:
        enable(options)


def enable(options: Mapping[str, Any] | None = None) -> None:
    """Merge the denoisers that workers in this process load from now on.

    Args:
        options: as `torch.compile(backend="toma", options=...)` takes them.

    Raises:
        ConfigError: an option is unknown or out of range.
        EngineError: vLLM-Omni has not the method that is wrapped.
    """
    backend = backend_with(options or {})

    def load_model(plain: Callable[..., Any], runner: Any, *args: Any, **kwargs: Any) -> Any:
        with compiling_with(backend):
            result = plain(runner, *args, **kwargs)
        if runner.pipeline is None:  # load_format="dummy"
            return result
        if runner.od_config.enforce_eager:
            tell_plain(LOAD.engine, "Start it without --enforce-eager")
        names = getattr(runner.pipeline, "_dit_modules", None) or ("transformer", "transformer_2")
        follow_in(LOAD.engine, runner.pipeline, names)
        return result

    wrap(LOAD, load_model)
