"""Captions as tensors: a bag of hashed words, so that no text encoder is needed.

Every word is a fixed random vector, drawn from a generator that the word's own checksum seeds.
There is no vocabulary: a word that was never trained has a vector too, only no meaning.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

WORDS, WIDTH = 8, 128
"""Words that are read of a caption, and numbers a word."""

_FILLERS = frozenset(("a", "and", "an", "of", "on", "the", "with"))


class Text(NamedTuple):
    """A batch of captions.

    Attributes:
        words: `[B, WORDS, WIDTH]`, zero behind the last word.
        pooled: `[B, WIDTH]`: their sum at unit variance; zero for the empty caption.
    """

    words: Tensor
    pooled: Tensor

    def to(self, device: torch.device | str) -> Text:
        return Text(self.words.to(device), self.pooled.to(device))


def split(caption: str) -> list[str]:
    """The words that count: `"Ear of Maize"` is `["ear", "maize"]`."""
    return [word for word in re.findall(r"[a-z0-9]+", caption.lower()) if word not in _FILLERS]


def embed(captions: Sequence[str]) -> Text:
    """Captions in any order of words; the empty caption is unconditional."""
    words = torch.zeros(len(captions), WORDS, WIDTH)
    for row, caption in enumerate(captions):
        for place, word in enumerate(split(caption)[:WORDS]):
            words[row, place] = _vector(word)
    count = words.any(-1).sum(-1, keepdim=True).clamp(min=1)
    return Text(words, words.sum(1) / count.sqrt())


@lru_cache(maxsize=4096)
def _vector(word: str) -> Tensor:
    seed = zlib.crc32(word.encode())  # Python's own hash differs from process to process
    noise = torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))
    return noise * (math.sqrt(WIDTH) / noise.norm())
