"""Diffusers blocks whose `forward` merges and unmerges by hand, with the eager reference.

This is what the compiled graph has to equal. It is written block by block, as the field does it,
and shares nothing with the passes but `toma_fx.reference` and the token orders.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock, JointTransformerBlock
from diffusers.models.transformers.transformer_flux import (
    FluxSingleTransformerBlock,
    FluxTransformerBlock,
)
from torch import Tensor, nn

from toma_fx import reference
from toma_fx.windows import cut


@dataclass
class HandPlan:
    """One plan for one batch, made from hidden states `[B, N, C]` in a given token order."""

    hidden: Tensor
    sequence: Tensor
    ratio: float
    window_tokens: int = 64
    unmerging: str = "transpose"

    def __post_init__(self) -> None:
        self.windows = cut(self.hidden.shape[1], self.window_tokens, self.ratio)
        assert self.windows.pads == 0
        tokens = self._windowed(self.hidden)
        self.destinations = reference.select_destinations(tokens, self.windows.destinations)
        self.weights = reference.assignment(tokens, self.destinations, 1e-3)

    def merge(self, hidden: Tensor) -> Tensor:
        merged = reference.merge(self._windowed(hidden), self.weights)
        return merged.view(hidden.shape[0], -1, hidden.shape[-1])

    def unmerge(self, merged: Tensor) -> Tensor:
        B, _, C = merged.shape
        windows = merged.reshape(-1, self.windows.destinations, C)
        ordered = reference.unmerge(windows, self.weights, self.unmerging).view(B, -1, C)
        return ordered[:, torch.argsort(self.sequence)]

    def rows(self) -> Tensor:
        """`[B, D]` tokens that are destinations."""
        W, n = self.windows.count, self.windows.size
        local = self.destinations.view(-1, W, self.windows.destinations)
        return self.sequence[(local + torch.arange(W).view(1, -1, 1) * n).flatten(1)]

    def _windowed(self, hidden: Tensor) -> Tensor:
        return hidden[:, self.sequence].reshape(-1, self.windows.size, hidden.shape[-1])


@dataclass
class HandMerge:
    """Which plan a region uses: its own, or that of the run it belongs to."""

    ratio: float
    share: str
    sequence_of: Callable[[int], Tensor]
    unmerging: str = "transpose"
    runs: dict[Any, HandPlan] = field(default_factory=dict)

    def plan(self, entry: Tensor, run: Any, residual: Tensor | None = None) -> HandPlan:
        if self.share == "region":
            return self._new(entry)
        if run not in self.runs:
            self.runs[run] = self._new(entry)
        return self.runs[run]

    def run_of(self, module: nn.Module, path: str) -> Any:
        """Blocks of a class that follow one another, below one parent in a UNet."""
        parent = path.rsplit(".transformer_blocks.", 1)[0]
        return (type(module), parent if type(module) is BasicTransformerBlock else "")

    def _new(self, entry: Tensor) -> HandPlan:
        sequence = self.sequence_of(entry.shape[1])
        return HandPlan(entry, sequence, self.ratio, unmerging=self.unmerging)


@contextmanager
def merged_by_hand(model: nn.Module, how: Any) -> Iterator[nn.Module]:
    """The model with every known block merging by hand; restored on leaving."""
    patched = []
    for path, module in model.named_modules():
        forward = _FORWARDS.get(type(module))
        if forward is not None:
            run = how.run_of(module, path)
            module.forward = _bind(forward, module, how, run)  # type: ignore[method-assign]
            patched.append(module)
    try:
        yield model
    finally:
        for module in patched:
            del module.forward


def _bind(forward: Any, module: nn.Module, how: Any, run: Any) -> Any:
    return lambda *args, **kwargs: forward(module, how, run, *args, **kwargs)


def _basic(
    block: Any, how: HandMerge, run: Any, hidden: Tensor, *, encoder_hidden_states: Tensor, **_: Any
) -> Tensor:
    for norm, layer, context in (
        (block.norm1, block.attn1, {}),
        (block.norm2, block.attn2, {"encoder_hidden_states": encoder_hidden_states}),
        (block.norm3, block.ff, {}),
    ):
        entry = norm(hidden)
        plan = how.plan(entry, run, hidden)
        hidden = hidden + plan.unmerge(layer(plan.merge(entry), **context))
    return hidden


def _rotary(rotary: tuple[Tensor, Tensor], plan: HandPlan, text: int) -> tuple[Tensor, Tensor]:
    rows = torch.cat((torch.arange(text), plan.rows()[0] + text))
    return rotary[0][rows], rotary[1][rows]


def _joint(
    block: Any,
    how: HandMerge,
    run: Any,
    *,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    temb: Tensor,
    image_rotary_emb: Any,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    hidden, text = hidden_states, encoder_hidden_states
    entry, gate, shift_mlp, scale_mlp, gate_mlp = block.norm1(hidden, emb=temb)
    text_entry, c_gate, c_shift, c_scale, c_gate_mlp = block.norm1_context(text, emb=temb)
    plan = how.plan(entry, run, hidden)
    attention, context = block.attn(
        hidden_states=plan.merge(entry),
        encoder_hidden_states=text_entry,
        image_rotary_emb=_rotary(image_rotary_emb, plan, text.shape[1]),
    )
    hidden = hidden + plan.unmerge(gate.unsqueeze(1) * attention)
    entry = block.norm2(hidden) * (1 + scale_mlp[:, None]) + shift_mlp[:, None]
    plan = how.plan(entry, run, hidden)
    hidden = hidden + plan.unmerge(gate_mlp.unsqueeze(1) * block.ff(plan.merge(entry)))
    text = text + c_gate.unsqueeze(1) * context
    entry = block.norm2_context(text) * (1 + c_scale[:, None]) + c_shift[:, None]
    return text + c_gate_mlp.unsqueeze(1) * block.ff_context(entry), hidden


def _single(
    block: Any,
    how: HandMerge,
    run: Any,
    *,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    temb: Tensor,
    image_rotary_emb: Any,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    T = encoder_hidden_states.shape[1]
    residual = torch.cat((encoder_hidden_states, hidden_states), 1)
    entry, gate = block.norm(residual, emb=temb)
    plan = how.plan(entry[:, T:], run, residual[:, T:])
    merged = torch.cat((entry[:, :T], plan.merge(entry[:, T:])), 1)
    attention = block.attn(
        hidden_states=merged, image_rotary_emb=_rotary(image_rotary_emb, plan, T)
    )
    mlp = block.act_mlp(block.proj_mlp(merged))
    out = gate.unsqueeze(1) * block.proj_out(torch.cat((attention, mlp), 2))
    out = residual + torch.cat((out[:, :T], plan.unmerge(out[:, T:])), 1)
    return out[:, :T], out[:, T:]


def _joint_dual(
    block: Any,
    how: HandMerge,
    run: Any,
    *,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    temb: Tensor,
    **_: Any,
) -> tuple[Tensor | None, Tensor]:
    """Stable Diffusion 3.5: positions are added before the blocks, attention may be double."""
    hidden, text = hidden_states, encoder_hidden_states
    entry, gate, shift_mlp, scale_mlp, gate_mlp, *second = block.norm1(hidden, emb=temb)
    if block.context_pre_only:
        text_entry = block.norm1_context(text, temb)
    else:
        text_entry, *gates = block.norm1_context(text, emb=temb)
    plan = how.plan(entry, run)
    attention, context = block.attn(
        hidden_states=plan.merge(entry), encoder_hidden_states=text_entry
    )
    hidden = hidden + plan.unmerge(gate.unsqueeze(1) * attention)
    if second:
        plan = how.plan(second[0], run)
        attention = block.attn2(hidden_states=plan.merge(second[0]))
        hidden = hidden + plan.unmerge(second[1].unsqueeze(1) * attention)
    entry = block.norm2(hidden) * (1 + scale_mlp[:, None]) + shift_mlp[:, None]
    plan = how.plan(entry, run)
    hidden = hidden + plan.unmerge(gate_mlp.unsqueeze(1) * block.ff(plan.merge(entry)))
    if block.context_pre_only:
        return None, hidden
    c_gate, c_shift, c_scale, c_gate_mlp = gates
    text = text + c_gate.unsqueeze(1) * context
    entry = block.norm2_context(text) * (1 + c_scale[:, None]) + c_shift[:, None]
    return text + c_gate_mlp.unsqueeze(1) * block.ff_context(entry), hidden


_FORWARDS: dict[type, Any] = {
    BasicTransformerBlock: _basic,
    JointTransformerBlock: _joint_dual,
    FluxTransformerBlock: _joint,
    FluxSingleTransformerBlock: _single,
}


def relative(result: Tensor, expected: Tensor) -> float:
    """‖result − expected‖ / ‖expected‖ in float64."""
    a, b = result.double(), expected.double()
    error = ((a - b).norm() / b.norm()).item()
    return math.inf if math.isnan(error) else error
