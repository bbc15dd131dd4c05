"""ToMeSD, ToFu and ToDo in plain eager PyTorch, token by token, from the papers' formulas."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from diffusers.models.transformers import transformer_flux
from torch import Tensor, nn


def heads_of(height: int, width: int) -> list[int]:
    """The first token of each 2×2 cell of a grid with even sides."""
    return [y * width + x for y in range(0, height, 2) for x in range(0, width, 2)]


@dataclass
class HandMatch:
    """A matching of one block, as `eager_merge` asks for it; every block matches anew."""

    ratio: float
    grid: Any  # token count → (height, width)
    prunes: Any = lambda block: None  # block number → drop (True), keep norms (False), average
    blocks: list[str] = field(default_factory=list)

    def run_of(self, module: nn.Module, path: str) -> str:
        return path

    def plan(self, entry: Tensor, run: str, residual: Tensor | None = None) -> Matched:
        if run not in self.blocks:  # called in the order of the graph
            self.blocks.append(run)
            self._matches = self._match(entry if residual is None else residual)
        return Matched(self._matches, self.prunes(self.blocks.index(run)))

    def _match(self, tokens: Tensor) -> list[dict[int, list[int]]]:
        """For each item, which tokens each destination or single token stands for."""
        heads = heads_of(*self.grid(tokens.shape[1]))
        others = [t for t in range(tokens.shape[1]) if t not in set(heads)]
        removed = min(int(tokens.shape[1] * self.ratio), len(others))
        found = []
        for item in tokens:
            unit = item / item.norm(dim=-1, keepdim=True)
            best, nearest = (unit[others] @ unit[heads].T).max(-1)
            ranked = best.argsort(descending=True).tolist()
            groups = {head: [head] for head in heads}
            groups |= {others[i]: [others[i]] for i in sorted(ranked[removed:])}
            for i in ranked[:removed]:
                groups[heads[nearest[i]]].append(others[i])
            found.append(groups)
        return found


@dataclass
class Matched:
    """Merges and unmerges by one matching."""

    matches: list[dict[int, list[int]]]
    prunes: bool | None

    def merge(self, tokens: Tensor) -> Tensor:
        rows = [
            torch.stack([self._join(item[members]) for members in groups.values()])
            for item, groups in zip(tokens, self.matches, strict=True)
        ]
        return torch.stack(rows)

    def unmerge(self, merged: Tensor) -> Tensor:
        full = []
        for item, groups in zip(merged, self.matches, strict=True):
            place = {t: row for row, members in enumerate(groups.values()) for t in members}
            full.append(item[[place[t] for t in range(len(place))]])
        return torch.stack(full)

    def rows(self) -> Tensor:
        return torch.tensor([list(groups) for groups in self.matches])

    def _join(self, members: Tensor) -> Tensor:
        if self.prunes:
            return members[0]
        mean = members.mean(0)
        if self.prunes is None:
            return mean
        return mean / mean.norm() * members.norm(dim=-1).max()


@contextmanager
def sampled_keys(rows: dict[int, list[int]], text: int = 0) -> Iterator[None]:
    """Self-attention sees `rows` of its keys and values: linears act on tokens one by one.

    Args:
        rows: by number of picture tokens.
        text: tokens before the picture, all kept.
    """
    plain = F.scaled_dot_product_attention

    def attend(query: Tensor, key: Tensor, value: Tensor, **more: Any) -> Tensor:
        found = rows.get(key.shape[2] - text)
        if found is not None and query.shape[2] == key.shape[2]:
            kept = [*range(text), *(text + row for row in found)]
            key, value = key[:, :, kept], value[:, :, kept]
        return plain(query, key, value, **more)

    def dispatch(query: Tensor, key: Tensor, value: Tensor, *_: Any, **more: Any) -> Tensor:
        heads_first = (t.transpose(1, 2) for t in (query, key, value))
        return attend(*heads_first).transpose(1, 2)

    with (
        mock.patch.object(F, "scaled_dot_product_attention", attend),
        mock.patch.object(transformer_flux, "dispatch_attention_fn", dispatch),
    ):
        yield
