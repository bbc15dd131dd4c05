"""Diffusers models whose blocks run on a merged stream by hand, alone or several in a row.

`x + unmerge(f(merge x) − merge x)`, with `f` the plain `forward` of one block or of a few. Shares
nothing with the passes but `toma_fx.reference` and the token orders.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock, JointTransformerBlock
from diffusers.models.transformers.transformer_flux import (
    FluxSingleTransformerBlock,
    FluxTransformerBlock,
)
from torch import Tensor, nn

from tests.eager_merge import HandMerge

BLOCKS = (
    BasicTransformerBlock,
    JointTransformerBlock,
    FluxTransformerBlock,
    FluxSingleTransformerBlock,
)


class HandScope:
    """Blocks in a row: the first merges, the last adds what all of them changed."""

    def __init__(self, how: HandMerge, run: str, blocks: list[nn.Module]) -> None:
        self.how, self.run, self.blocks = how, run, blocks

    def call(self, block: Any, hidden_states: Tensor, **others: Any) -> Any:
        if block is self.blocks[0]:
            self.full, self.plan = hidden_states, self.how.plan(hidden_states, self.run)
            self.before = hidden_states = self.plan.merge(hidden_states)
        if others.get("image_rotary_emb") is not None:
            others["image_rotary_emb"] = self.tables(**others)
        result = type(block).forward(block, hidden_states=hidden_states, **others)
        if block is not self.blocks[-1]:
            return result
        if isinstance(result, Tensor):
            return self.back(result)
        text, hidden = result
        return text, self.back(hidden)

    def tables(
        self, image_rotary_emb: Any, encoder_hidden_states: Tensor, **_: Any
    ) -> tuple[Tensor, ...]:
        text = encoder_hidden_states.shape[1]
        rows = torch.cat((torch.arange(text), self.plan.rows()[0] + text))
        return tuple(table[rows] for table in image_rotary_emb)

    def back(self, merged: Tensor) -> Tensor:
        return self.full + self.plan.unmerge(merged - self.before)


@contextmanager
def scoped_by_hand(model: nn.Module, how: HandMerge, span: int = 1) -> Iterator[None]:
    """The model with scopes of `span` blocks; restored on leaving."""
    runs: dict[str, list[nn.Module]] = {}
    for path, module in model.named_modules():
        if type(module) in BLOCKS:
            runs.setdefault(path.rpartition(".")[0], []).append(module)
    for run, blocks in runs.items():
        for start in range(0, len(blocks), span):
            scope = HandScope(how, run, blocks[start : start + span])
            for block in scope.blocks:
                block.forward = partial(scope.call, block)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for blocks in runs.values():
            for block in blocks:
                del block.forward
