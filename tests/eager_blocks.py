"""Blocks of the models that people run now, merged by hand: see `eager_merge`.

Windows may have pads here, so that plans come from `helpers.HandMerge`. Each item of a batch is
run alone where a block's rotary embeddings have no batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.transformers.transformer_flux2 import (
    Flux2Modulation,
    Flux2SingleTransformerBlock,
    Flux2TransformerBlock,
)
from diffusers.models.transformers.transformer_ltx import LTXVideoTransformerBlock
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformerBlock
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from diffusers.models.transformers.transformer_z_image import ZImageTransformerBlock
from torch import Tensor, nn

from tests import helpers
from toma_fx import TomaConfig


class Runs:
    """One plan for each run of blocks of a class, made from the first entry.

    Args:
        sequence: the picture's tokens, window by window.
        size: tokens of a window.
        config: ratio and temperature.
    """

    def __init__(self, sequence: Tensor, size: int, config: TomaConfig) -> None:
        self._sequence, self._size, self._config = sequence, size, config
        self._plans: dict[type, helpers.HandMerge] = {}

    def plan(self, block: nn.Module, entry: Tensor) -> helpers.HandMerge:
        if type(block) not in self._plans:
            made = helpers.HandMerge(entry, self._sequence, self._config, self._size)
            self._plans[type(block)] = made
        return self._plans[type(block)]


Forward = Callable[..., Any]


@contextmanager
def merged_by_hand(model: nn.Module, runs: Runs) -> Iterator[None]:
    """The model with its blocks merging by hand; restored on leaving."""
    patched = [module for module in model.modules() if type(module) in _FORWARDS]
    for module in patched:
        module.forward = _bound(_FORWARDS[type(module)], module, runs)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in patched:
            del module.forward


def _bound(forward: Forward, module: nn.Module, runs: Runs) -> Forward:
    return lambda *args, **kwargs: forward(module, runs, *args, **kwargs)


def _rows(tables: Any, hand: helpers.HandMerge) -> tuple[Tensor, ...]:
    """`[B or 1, N, …]` tables at each item's destinations."""
    batch = len(hand.rows)
    spread = [table.expand(batch, *table.shape[1:]) for table in tables]
    return tuple(
        torch.stack([table[item, rows] for item, rows in enumerate(hand.rows)]) for table in spread
    )


def _wan(block: Any, runs: Runs, hidden: Tensor, text: Tensor, temb: Tensor, rotary: Any) -> Tensor:
    """A timestep for each token gives `temb` another axis: its gates multiply at full length."""
    axis = temb.dim() - 2
    parts = (block.scale_shift_table + temb).chunk(6, axis)
    if temb.dim() == 4:
        parts = tuple(part.squeeze(2) for part in parts)
    shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = parts
    entry = block.norm1(hidden) * (1 + scale) + shift
    hand = runs.plan(block, entry)
    attended = block.attn1(hand.merge(entry), None, None, _rows(rotary, hand))
    hidden = hidden + hand.unmerge(attended) * gate
    entry = block.norm2(hidden)
    hidden = hidden + hand.unmerge(block.attn2(hand.merge(entry), text, None, None))
    entry = block.norm3(hidden) * (1 + scale_mlp) + shift_mlp
    return hidden + hand.unmerge(block.ffn(hand.merge(entry))) * gate_mlp


def _ltx(
    block: Any,
    runs: Runs,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    temb: Tensor,
    image_rotary_emb: Any,
    encoder_attention_mask: Tensor | None,
) -> Tensor:
    hidden, batch = hidden_states, hidden_states.shape[0]
    values = block.scale_shift_table + temb.reshape(batch, temb.shape[1], 6, -1)
    shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = values.unbind(2)
    entry = block.norm1(hidden) * (1 + scale) + shift
    hand = runs.plan(block, entry)
    rotary = _rows(image_rotary_emb, hand)
    hidden = hidden + hand.unmerge(block.attn1(hand.merge(entry), None, None, rotary)) * gate
    attended = block.attn2(
        hand.merge(hidden), encoder_hidden_states, encoder_attention_mask, image_rotary_emb=None
    )
    hidden = hidden + hand.unmerge(attended)
    entry = block.norm2(hidden) * (1 + scale_mlp) + shift_mlp
    return hidden + hand.unmerge(block.ff(hand.merge(entry))) * gate_mlp


def _qwen(
    block: Any,
    runs: Runs,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    encoder_hidden_states_mask: Tensor | None,
    temb: Tensor,
    image_rotary_emb: Any,
    joint_attention_kwargs: Any = None,
    modulate_index: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    hidden, text = hidden_states, encoder_hidden_states
    mod1, mod2 = block.img_mod(temb).chunk(2, -1)
    temb = temb.chunk(2, 0)[0] if block.zero_cond_t else temb
    text_mod1, text_mod2 = block.txt_mod(temb).chunk(2, -1)
    entry, gate = block._modulate(block.img_norm1(hidden), mod1, modulate_index)
    words, text_gate = block._modulate(block.txt_norm1(text), text_mod1)
    picture = len(runs._sequence)
    hand = runs.plan(block, entry[:, :picture])
    kept = torch.arange(picture, hidden.shape[1])
    rows = torch.cat((hand.rows[0], kept))
    attended, context = block.attn(
        hidden_states=_short(entry, hand, picture),
        encoder_hidden_states=words,
        encoder_hidden_states_mask=encoder_hidden_states_mask,
        image_rotary_emb=(image_rotary_emb[0][rows], image_rotary_emb[1]),
    )
    hidden = hidden + gate * _full(attended, hand)
    text = text + text_gate * context
    entry, gate = block._modulate(block.img_norm2(hidden), mod2, modulate_index)
    hidden = hidden + gate * _full(block.img_mlp(_short(entry, hand, picture)), hand)
    words, text_gate = block._modulate(block.txt_norm2(text), text_mod2)
    return text + text_gate * block.txt_mlp(words), hidden


def _short(tokens: Tensor, hand: helpers.HandMerge, picture: int) -> Tensor:
    """The picture's tokens, which come first, merged; references as they are."""
    return torch.cat((hand.merge(tokens[:, :picture]), tokens[:, picture:]), 1)


def _full(tokens: Tensor, hand: helpers.HandMerge) -> Tensor:
    merged = hand.windows.merged
    return torch.cat((hand.unmerge(tokens[:, :merged]), tokens[:, merged:]), 1)


def _flux2(
    block: Any,
    runs: Runs,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    temb_mod_img: Tensor,
    temb_mod_txt: Tensor,
    image_rotary_emb: Any,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    hidden, text = hidden_states, encoder_hidden_states
    (shift, scale, gate), (shift2, scale2, gate2) = Flux2Modulation.split(temb_mod_img, 2)
    (c_shift, c_scale, c_gate), (c_shift2, c_scale2, c_gate2) = Flux2Modulation.split(
        temb_mod_txt, 2
    )
    entry = (1 + scale) * block.norm1(hidden) + shift
    words = (1 + c_scale) * block.norm1_context(text) + c_shift
    hand = runs.plan(block, entry)
    attended, context = block.attn(
        hidden_states=hand.merge(entry),
        encoder_hidden_states=words,
        image_rotary_emb=_joint_rows(image_rotary_emb, hand, text.shape[1]),
    )
    hidden = hidden + hand.unmerge(gate * attended)
    entry = block.norm2(hidden) * (1 + scale2) + shift2
    hidden = hidden + hand.unmerge(gate2 * block.ff(hand.merge(entry)))
    text = text + c_gate * context
    words = block.norm2_context(text) * (1 + c_scale2) + c_shift2
    return text + c_gate2 * block.ff_context(words), hidden


def _flux2_single(
    block: Any,
    runs: Runs,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor | None,
    temb_mod: Tensor,
    image_rotary_emb: Any,
    **_: Any,
) -> Tensor:
    hidden, text = hidden_states, hidden_states.shape[1] - len(runs._sequence)
    shift, scale, gate = Flux2Modulation.split(temb_mod, 1)[0]
    entry = (1 + scale) * block.norm(hidden) + shift
    hand = runs.plan(block, entry[:, text:])
    out = block.attn(
        hidden_states=torch.cat((entry[:, :text], hand.merge(entry[:, text:])), 1),
        image_rotary_emb=_joint_rows(image_rotary_emb, hand, text),
    )
    out = gate * out
    return hidden + torch.cat((out[:, :text], hand.unmerge(out[:, text:])), 1)


def _joint_rows(rotary: Any, hand: helpers.HandMerge, text: int) -> tuple[Tensor, Tensor]:
    rows = torch.cat((torch.arange(text), hand.rows[0] + text))
    return rotary[0][rows], rotary[1][rows]


def _z_image(
    block: Any, runs: Runs, hidden: Tensor, mask: Tensor | None, rotary: Tensor, *temb: Tensor
) -> Tensor:
    """The picture comes first; its pads, and text behind it, are kept. Text alone is not merged."""
    if not block.modulation:
        return ZImageTransformerBlock.forward(block, hidden, mask, rotary)
    scale, gate, scale_mlp, gate_mlp = block.adaLN_modulation(temb[0]).unsqueeze(1).chunk(4, 2)
    entry = block.attention_norm1(hidden) * (1 + scale)
    picture = len(runs._sequence)
    hand = runs.plan(block, entry[:, :picture])
    attended = block.attention(
        _short(entry, hand, picture),
        attention_mask=None if mask is None else hand.gather(mask, 1, 0),
        freqs_cis=hand.gather(rotary, 1, 0),
    )
    hidden = hidden + _full(gate.tanh() * block.attention_norm2(attended), hand)
    entry = block.ffn_norm1(hidden) * (1 + scale_mlp)
    found = block.ffn_norm2(block.feed_forward(_short(entry, hand, picture)))
    return hidden + _full(gate_mlp.tanh() * found, hand)


_FORWARDS: dict[type, Forward] = {
    WanTransformerBlock: _wan,
    LTXVideoTransformerBlock: _ltx,
    QwenImageTransformerBlock: _qwen,
    Flux2TransformerBlock: _flux2,
    Flux2SingleTransformerBlock: _flux2_single,
    ZImageTransformerBlock: _z_image,
}
