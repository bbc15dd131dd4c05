"""The door for diffusers pipelines.

    from toma_fx.diffusers import TokenMergingConfig, apply, status

    apply(pipe, TokenMergingConfig(ratio=0.5))
    image = pipe(prompt).images[0]
    print(status(pipe))

`pipe.unet` (or `pipe.transformer`) stays the same module, compiled in place, so that LoRA loading,
offloading and `pipe.components` work as before. Nothing of diffusers is imported or patched.
"""

from toma_fx.diffusers.config import TokenMergingConfig
from toma_fx.diffusers.pipeline import apply, disable, enable, is_applied, remove, status
from toma_fx.diffusers.status import GraphStatus, Status

__all__ = [
    "GraphStatus",
    "Status",
    "TokenMergingConfig",
    "apply",
    "disable",
    "enable",
    "is_applied",
    "remove",
    "status",
]
