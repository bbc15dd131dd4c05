"""Diffusers models whose blocks remember by hand, with `toma_fx.refresh` as the only helper.

Written region by region and block by block, as a patch of the model would do it. Shares nothing
with the passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.transformers import transformer_flux
from diffusers.models.transformers.transformer_flux import (
    FluxSingleTransformerBlock,
    FluxTransformerBlock,
)
from torch import Tensor, nn

from toma_fx.passes.methods.pace import Computes
from toma_fx.refresh import Memory, Rotation
from toma_fx.share import Share


@dataclass
class HandRefresh:
    """The memories of one model, and the step that it is at.

    Args:
        share: of the tokens that a step computes.
        cells: token count to coordinates.
        keys: "computed", or "all": queries alone are computed in part.
        scope: "region", "block", or "span", all blocks of a list.
        settings: of every `Memory`.
    """

    share: Share
    cells: Callable[[int], tuple[tuple[int, ...], ...]]
    keys: str = "computed"
    scope: str = "region"
    settings: dict[str, Any] = field(default_factory=dict)
    memories: dict[str, Memory] = field(default_factory=dict)
    rotations: dict[int, Rotation] = field(default_factory=dict)
    streams: dict[str, HandStream] = field(default_factory=dict)
    ends: set[str] = field(default_factory=set)
    computes: Computes = Computes.SHARE
    step: int = 0
    turn: int = 0

    def begin(self) -> None:
        """A new picture."""
        self.step = self.turn = 0
        for memory in self.memories.values():
            memory.forget()

    def rotation(self, tokens: int) -> Rotation:
        if tokens not in self.rotations:
            self.rotations[tokens] = Rotation(self.cells(tokens), self.share)
        return self.rotations[tokens]

    def rows(self, hidden: Tensor) -> Tensor:
        if self.computes is Computes.ALL:
            return torch.arange(hidden.shape[1])
        return torch.tensor(self.rotation(hidden.shape[1]).rows(self.turn))

    def recall(self, path: str, computed: Tensor, like: Tensor) -> Tensor:
        """What a region adds; in a step that rests, whatever was computed is not looked at."""
        memory = self.memory(path, like)
        if self.computes is Computes.SHARE:
            return memory.recall(computed, self.turn, self.step)
        return self.all_or_none(memory, computed)

    def text(self, path: str, computed: Tensor) -> Tensor:
        """What text takes from a region: all of it is computed, or none."""
        return self.all_or_none(self.memory(path, computed), computed)

    def all_or_none(self, memory: Memory, computed: Tensor) -> Tensor:
        if self.computes is Computes.NONE:
            return memory.rest(self.step)
        return memory.learn(computed, self.step)

    def memory(self, path: str, like: Tensor) -> Memory:
        if path not in self.memories:
            count = like.shape[1]
            text = path.endswith(".text")
            rotation = Rotation(((0, 0),) * count, Share(1, 1)) if text else self.rotation(count)
            self.memories[path] = Memory(rotation, **self.settings)
        return self.memories[path]

    def after(self) -> None:
        """A call is over."""
        self.step += 1
        self.turn += self.computes is Computes.SHARE

    def queries(self, hidden: Tensor, text: int = 0) -> Any:
        """Attention inside computes `rows` of its queries; keys and values are all."""
        rows = torch.cat((torch.arange(text), self.rows(hidden) + text))
        return only_queries(rows, text + hidden.shape[1])


class HandStream:
    """A picture's tokens inside of a block: at full length, or those of a scope that are computed.

    Adding a region's result at full length recalls those of the others; in a scope only the
    computed ones go on, and the others are recalled where it ends.
    """

    @classmethod
    def into(cls, how: HandRefresh, path: str, hidden: Tensor) -> HandStream:
        """A block's stream, which in a span is that of the block before it."""
        blocks, _, number = path.rpartition(".")
        if how.scope != "span":
            return cls(how, path, hidden)
        if number == "0":
            how.streams[blocks] = cls(how, blocks, hidden)
        return how.streams[blocks]

    def __init__(self, how: HandRefresh, path: str, hidden: Tensor) -> None:
        self.how, self.path, self.full = how, path, hidden
        self.rows = how.rows(hidden)
        self.before = self.now = hidden[:, self.rows]

    @property
    def seen(self) -> Tensor:
        """What norms and linears of the computed tokens run on."""
        return self.full[:, self.rows] if self.how.scope == "region" else self.now

    def add(self, computed: Tensor, name: str, gate: Tensor | float = 1.0) -> None:
        """Times the gate of this step: a region remembers what lies before it, a block all."""
        if self.how.scope == "region":
            found = self.how.recall(f"{self.path}.{name}", computed, self.full)
            self.full = self.full + gate * found
        else:
            self.now = self.now + gate * computed

    def end(self, last: bool = True) -> Tensor:
        """At full length; of a span, where its last block ends."""
        if self.how.scope == "region" or not last:
            return self.full
        return self.full + self.how.recall(self.path, self.now - self.before, self.full)


@contextmanager
def only_queries(rows: Tensor, length: int) -> Iterator[None]:
    """Attention over `length` tokens answers `rows` of its queries."""
    plain = F.scaled_dot_product_attention

    def attend(query: Tensor, key: Tensor, value: Tensor, **more: Any) -> Tensor:
        if query.shape[2] == length == key.shape[2]:
            query = query[:, :, rows]
        return plain(query, key, value, **more)

    def dispatch(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        return attend(*(part.transpose(1, 2) for part in (query, key, value))).transpose(1, 2)

    with (
        mock.patch.object(F, "scaled_dot_product_attention", attend),
        mock.patch.object(transformer_flux, "dispatch_attention_fn", dispatch),
    ):
        yield


def _basic(
    block: Any,
    how: HandRefresh,
    path: str,
    hidden: Tensor,
    *,
    encoder_hidden_states: Tensor,
    **_: Any,
) -> Tensor:
    stream = HandStream.into(how, path, hidden)
    if how.keys == "all":
        query = block.attn1.to_q(block.norm1(stream.seen))
        entry = block.norm1(stream.full)
        key, value = block.attn1.to_k(entry), block.attn1.to_v(entry)
        heads = (part.unflatten(-1, (block.attn1.heads, -1)) for part in (query, key, value))
        mixed = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in heads))
        stream.add(block.attn1.to_out[0](mixed.transpose(1, 2).flatten(2)), "attn1")
    else:
        stream.add(block.attn1(block.norm1(stream.seen)), "attn1")
    text = encoder_hidden_states
    stream.add(block.attn2(block.norm2(stream.seen), encoder_hidden_states=text), "attn2")
    stream.add(block.ff(block.norm3(stream.seen)), "ff")
    return stream.end(how.scope != "span" or path in how.ends)


def _rotary(rotary: tuple[Tensor, Tensor], rows: Tensor, text: int) -> tuple[Tensor, ...]:
    kept = torch.cat((torch.arange(text), rows + text))
    return tuple(table[kept] for table in rotary)


def _joint(
    block: Any,
    how: HandRefresh,
    path: str,
    *,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    temb: Tensor,
    image_rotary_emb: Any,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    text, stream = encoder_hidden_states, HandStream(how, path, hidden_states)
    words = text.shape[1]
    entry, gate, shift_mlp, scale_mlp, gate_mlp = block.norm1(stream.full, emb=temb)
    text_entry, c_gate, c_shift, c_scale, c_gate_mlp = block.norm1_context(text, emb=temb)
    given = {"encoder_hidden_states": text_entry, "image_rotary_emb": image_rotary_emb}
    if how.keys == "all":
        with how.queries(stream.full, words):
            attention, context = block.attn(hidden_states=entry, **given)
    else:
        given["image_rotary_emb"] = _rotary(image_rotary_emb, stream.rows, words)
        attention, context = block.attn(hidden_states=entry[:, stream.rows], **given)
    stream.add(attention, "attn", gate.unsqueeze(1))
    context = how.text(f"{path}.text", context)
    entry = block.norm2(stream.seen) * (1 + scale_mlp[:, None]) + shift_mlp[:, None]
    stream.add(block.ff(entry), "ff", gate_mlp.unsqueeze(1))
    text = text + c_gate.unsqueeze(1) * context
    entry = block.norm2_context(text) * (1 + c_scale[:, None]) + c_shift[:, None]
    return text + c_gate_mlp.unsqueeze(1) * block.ff_context(entry), stream.end()


def _single(
    block: Any,
    how: HandRefresh,
    path: str,
    *,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    temb: Tensor,
    image_rotary_emb: Any,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    text, stream = encoder_hidden_states, HandStream(how, path, hidden_states)
    words = text.shape[1]
    whole = torch.cat((text, stream.full), 1)
    kept = torch.cat((torch.arange(words), stream.rows + words))
    entry, gate = block.norm(whole, emb=temb)
    merged = entry[:, kept]
    if how.keys == "all":
        with how.queries(stream.full, words):
            attention = block.attn(hidden_states=entry, image_rotary_emb=image_rotary_emb)
    else:
        rotary = _rotary(image_rotary_emb, stream.rows, words)
        attention = block.attn(hidden_states=merged, image_rotary_emb=rotary)
    mlp = block.act_mlp(block.proj_mlp(merged))
    out, gate = block.proj_out(torch.cat((attention, mlp), 2)), gate.unsqueeze(1)
    stream.add(out[:, words:], "proj_out", gate)
    whole = gate * out[:, :words] if how.scope == "block" else out[:, :words]
    change = how.text(f"{path}.text", whole)
    return text + (change if how.scope == "block" else gate * change), stream.end()


_FORWARDS: dict[type, Any] = {
    BasicTransformerBlock: _basic,
    FluxTransformerBlock: _joint,
    FluxSingleTransformerBlock: _single,
}


def _next(path: str) -> str:
    """The module behind one of a list."""
    blocks, _, number = path.rpartition(".")
    return f"{blocks}.{int(number) + 1}" if number.isdigit() else ""


@contextmanager
def remembered_by_hand(model: nn.Module, how: HandRefresh) -> Iterator[Callable[..., Any]]:
    """A call of the model with every known block remembering by hand; restored on leaving."""
    patched, modules = [], dict(model.named_modules())
    how.ends = {path for path in modules if _next(path) not in modules}
    for path, module in modules.items():
        forward = _FORWARDS.get(type(module))
        if forward is not None:
            module.forward = partial(forward, module, how, path)  # type: ignore[method-assign]
            patched.append(module)

    def call(*args: Any, **kwargs: Any) -> Any:
        result = model(*args, **kwargs)
        how.after()
        return result

    try:
        yield call
    finally:
        for module in patched:
            del module.forward
