"""How a stream of tokens is cut into windows: sizes as data, no tensor yet."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Windows:
    """`count` windows of `size` slots over `tokens` tokens, `destinations` kept in each.

    Where the tokens do not fill the slots, each of the last `pads` windows ends in one pad: the
    padding is spread, so that no window is short by more than one token and none needs to pick
    a pad as a destination.
    """

    tokens: int
    count: int
    size: int
    destinations: int

    @property
    def pads(self) -> int:
        return self.count * self.size - self.tokens

    @property
    def merged(self) -> int:
        """Tokens left after merging, `D`."""
        return self.count * self.destinations

    def slot_ranks(self) -> list[int]:
        """For each slot, which token of the ordered sequence it holds; a pad repeats the last."""
        ranks: list[int] = []
        start = 0
        for window in range(self.count):
            real = self.size - (window >= self.count - self.pads)
            ranks += range(start, start + real)
            ranks += [start + real - 1] * (self.size - real)
            start += real
        return ranks

    def rank_slots(self) -> list[int]:
        """For each token of the ordered sequence, its slot: the inverse of `slot_ranks`."""
        slots = [0] * self.tokens
        for slot, rank in reversed(list(enumerate(self.slot_ranks()))):
            slots[rank] = slot
        return slots


def cut(tokens: int, window_tokens: int, ratio: float) -> Windows:
    """Cut `tokens` tokens into windows of at most `window_tokens`, removing `ratio` of each.

    A window keeps `n − floor(ratio · n)` destinations, at least one (ToMA, section 4.1).
    """
    count = math.ceil(tokens / min(window_tokens, tokens))
    size = math.ceil(tokens / count)
    return Windows(tokens, count, size, size - math.floor(ratio * size))
