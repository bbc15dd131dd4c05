"""The door for diffusers pipelines.

    from toma_fx.diffusers import TokenMergingConfig, apply

    apply(pipe, TokenMergingConfig(ratio=0.5))
    image = pipe(prompt).images[0]

`pipe.unet` (or `pipe.transformer`) stays the same module, compiled in place, so that LoRA loading,
offloading and `pipe.components` work as before. Nothing of diffusers is imported or patched.
"""

from toma_fx.diffusers.config import TokenMergingConfig
from toma_fx.diffusers.pipeline import apply, disable, enable, is_applied, remove

__all__ = ["TokenMergingConfig", "apply", "disable", "enable", "is_applied", "remove"]
