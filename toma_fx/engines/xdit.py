"""xDiT: its models load a pipeline of diffusers, compile its transformer, and warm it up.

`xFuserModel.initialize` calls `_load_model`, and `_compile_model` last, which many models
override: the transformer whole, or lists of its blocks where they are sharded or cached, by
`torch.compile(..., mode=..., dynamic=...)`, and two steps of the pipeline. No backend is named.
xDiT calls no plugins, so it is started by way of this module:

    torchrun --nproc_per_node=1 -m toma_fx.engines.xdit --model FLUX.1-dev --use_torch_compile ...
"""

from __future__ import annotations

import runpy
from collections.abc import Callable, Mapping
from typing import Any

from toma_fx.engines.door import asked, backend_with, compiling_with, follow_in, tell_plain
from toma_fx.engines.wrapping import Method, wrap

INITIALIZE = Method(
    "xDiT",
    "xfuser.model_executor.models.runner_models.base_model",
    "xFuserModel",
    "initialize",
    "0.7.0",
)
DENOISERS = ("transformer", "transformer_2", "unconditional_transformer", "unet")


def enable(options: Mapping[str, Any] | None = None) -> None:
    """Merge the denoisers of models that are initialised in this process from now on.

    Args:
        options: as `torch.compile(backend="toma", options=...)` takes them.

    Raises:
        ConfigError: an option is unknown or out of range.
        EngineError: xDiT is not installed, or has not the methods that are wrapped.
    """
    backend = backend_with(options or {})

    def initialize(plain: Callable[..., Any], model: Any, *args: Any, **kwargs: Any) -> Any:
        if not hasattr(model, "_compile_model"):
            raise INITIALIZE.missing(f"{type(model).__name__}._compile_model")
        if not model.config.use_torch_compile:
            tell_plain(INITIALIZE.engine, "Start it with --use_torch_compile")
        compile_model = model._compile_model

        def merged(*args: Any, **kwargs: Any) -> Any:
            follow_in(INITIALIZE.engine, model.pipe, DENOISERS)
            with compiling_with(backend):
                return compile_model(*args, **kwargs)

        model._compile_model = merged  # of this one: its class may have overridden it
        try:
            return plain(model, *args, **kwargs)
        finally:
            del model._compile_model

    wrap(INITIALIZE, initialize)


def main() -> None:
    """Run `xfuser.runner` in this process, merging with the options in `TOMA_FX` if there are."""
    enable(asked())
    runpy.run_module("xfuser.runner", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
