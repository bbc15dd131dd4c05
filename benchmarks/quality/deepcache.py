"""DeepCache: the deep features of a UNet are computed in every n-th step only.

Ma, Fang and Wang, "DeepCache: Accelerating Diffusion Models for Free" (CVPR 2024): the uniform
schedule and the outermost branch, which are the published code's defaults (`cache_branch_id=0`). In
the steps between, the UNet is its first convolution and its last layer, whose other input is what
came up from below at the last full step.

The two kinds of steps are two graphs, each compiled whole; which runs is decided on the host.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from benchmarks.quality.generations import Generations
from benchmarks.quality.own import compiled


class DeepCache:
    """A UNet of diffusers that remembers its deep features.

    Args:
        unet: changed: a copy of one's own. Its calls must ask for `return_dict=False`.
        generations: tells where generations begin; a call is a step, so guidance is one batch.
        backend: compiles both graphs; `"eager"` compiles nothing.
        every: steps from one full step to the next.
        full_backend: compiles the full graph, where that one should merge.

    Attributes:
        model: the UNet, of its own class.
    """

    def __init__(
        self,
        unet: nn.Module,
        generations: Generations,
        backend: str,
        every: int,
        full_backend: Callable[..., Any] | None = None,
    ) -> None:
        self.model = unet
        self._generations, self._every, self._step = generations, every, 0
        self._deep: Tensor | None = None
        split = unet.up_blocks[-1] = _Split(unet.up_blocks[-1])
        forward, shell = unet.forward, _shell(unet, _Above(split))

        def full(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            (sample,) = forward(*args, **kwargs)
            return sample, split.deep

        def shallow(deep: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            split.deep = deep
            (sample,) = shell(*args, **kwargs)
            return sample

        self._full = compiled(full, full_backend or backend, {})
        self._shallow = compiled(shallow, backend, {})
        unet.forward = self._forward

    def _forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor]:
        if self._generations.begins():
            self._step = 0
        due = self._step % self._every == 0
        self._step += 1
        if not due:
            return (self._shallow(self._deep, *args, **kwargs),)
        sample, self._deep = self._full(*args, **kwargs)
        return (sample,)


class _Split(nn.Module):
    """The last block in two: the layers below, whose result is noted, and the last one."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.below, self.last = _layers(block, slice(-1)), _layers(block, slice(-1, None))
        self.resnets = block.resnets  # the UNet counts them
        self.has_cross_attention = hasattr(block, "attentions")
        self.deep: Tensor | None = None

    def forward(
        self, hidden_states: Tensor, res_hidden_states_tuple: tuple[Tensor, ...], **others: Any
    ) -> Tensor:
        skips = {"res_hidden_states_tuple": res_hidden_states_tuple[1:]}
        self.deep = self.below(hidden_states=hidden_states, **skips, **others)
        skips = {"res_hidden_states_tuple": res_hidden_states_tuple[:1]}
        return self.last(hidden_states=self.deep, **skips, **others)


class _Above(nn.Module):
    """The last layer alone, on the features that were noted."""

    def __init__(self, split: _Split) -> None:
        super().__init__()
        self.split, self.resnets = split, split.last.resnets
        self.has_cross_attention = split.has_cross_attention

    def forward(self, hidden_states: Tensor, **others: Any) -> Tensor:
        return self.split.last(hidden_states=self.split.deep, **others)


def _layers(block: nn.Module, which: slice) -> nn.Module:
    """Some layers of a block, of its class, with its weights."""
    found = _beside(block)
    for name in ("resnets", "attentions"):
        if hasattr(block, name):
            setattr(found, name, getattr(block, name)[which])
    return found


def _shell(unet: nn.Module, last: nn.Module) -> nn.Module:
    """The UNet without what lies below its last layer: time, first convolution, output."""
    shell = _beside(unet)
    shell.down_blocks, shell.up_blocks = nn.ModuleList(), nn.ModuleList([last])
    shell.mid_block = None
    return shell


def _beside(module: nn.Module) -> nn.Module:
    """A module of the same class and weights, whose children may be replaced."""
    found = copy.copy(module)
    found._modules = dict(module._modules)
    return found
