"""Memory in plain eager PyTorch: the specification that `method="refresh"` is held against.

A token that is not computed in a step keeps what it added to the residual stream when it last was,
carried on by its own trend and corrected by what changed at its computed neighbours:

    ŷ_i = a_i + α · d_i,  d_i = (s − t_i) / (t_i − u_i) · (a_i − b_i)      prediction
    y_j = f(x)_j,  δ_j = y_j − ŷ_j                             computed, j ∈ S
    y_i = ŷ_i + γ · Σ_j w_ij δ_j,  Σ_j w_ij = 1                spread, i ∉ S

`y` is what a region computes, before a gate that all tokens share and that the timestep moves: all
of them go through the gate of the step. `a` and `b` are the last two values, `t` and `u` their
times. A new picture begins with ŷ = 0 and γ = 1, and what that spreads is stored as everybody's
first `a`; α counts once two values were computed. Merging spreads values; this spreads the error of
a prediction, which is small.

How far a trend holds differs from block to block, and with the number of steps. So α is fitted,
for each item of a batch, to the tokens that a step computes, of which prediction and truth are
both at hand. It bends: what a token of a whole interval ahead follows α of, one that is a share
r = (s − t) / (t − u) of it ahead follows, by the parabola through its values, to

    α(r) = 1 + (α − 1) · (1 + r) / 2
    α = 1 + Σ_j ⟨y_j − a_j − d_j, e_j⟩ / Σ_j ⟨e_j, e_j⟩,  e_j = (1 + r_j) / 2 · d_j
                                                           clamped to [0, 1.5], j ∈ S

and counts until the next fit. A given α is the same for all r and makes memory linear: then every
scope gives the same.

A step may rest: then all tokens are predicted, those that were not computed in the step before
with the correction that they had there, and nothing is kept. A dense one computes them all,
and all are remembered. What stays of text that sees the picture is computed in both other kinds of
step, and predicted like a token in a step that rests.

Which tokens: the grid is cut into `q` interleaved lattices, of which `p` in turn are computed.
Everything here is written token by token, for reading; `toma_fx.rotation` and `toma_fx.recall`
compute the same with the operations that a graph should have.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from toma_fx.share import Share

NEIGHBOURS = 4
"""Computed tokens that correct one that is not: in a half, those beside, above and below it."""

SKEW = {1: 0, 2: 1, 3: 1, 4: 2, 5: 2, 6: 2, 7: 2, 8: 3}
"""How far a lattice moves from row to row, such that its tokens stand as far apart as they can."""

_REACH = 4  # sides of the window in which neighbours are looked for


@dataclass(frozen=True)
class Rotation:
    """Which tokens each step computes, and who corrects whom.

    Args:
        cells: coordinates of `N` tokens, whole numbers from 0: `(y, x)`, or more with `y` and `x`
            second and third.
        share: of the tokens.
    """

    cells: tuple[tuple[int, ...], ...]
    share: Share

    def lattice(self, token: int) -> int:
        """The lattice that a token stands on; the next one lies one column further."""
        first = 0 if len(self.cells[token]) == 2 else 1
        y, x = self.cells[token][first : first + 2]
        slow = sum(self.cells[token]) - y - x
        return (x + SKEW[self.share.classes] * y + slow) % self.share.classes

    def classes(self) -> list[list[int]]:
        """Lattices of equal size: in sequence, cut into runs of `⌈N / q⌉` tokens.

        Where a lattice is longer than others (odd sides) its last tokens go to the next class, and
        where the tokens run out the last one is repeated: computed twice, it is still itself.
        """
        sequence = sorted(range(len(self.cells)), key=lambda token: (self.lattice(token), token))
        length = self.share.length(len(sequence))
        sequence += sequence[-1:] * (length * self.share.classes - len(sequence))
        return [sequence[start : start + length] for start in range(0, len(sequence), length)]

    def due(self, step: int) -> list[int]:
        """The classes that a step computes."""
        first = step * self.share.computed
        return [(first + more) % self.share.classes for more in range(self.share.computed)]

    def class_of(self) -> list[int]:
        """Every token's class."""
        found: dict[int, int] = {}
        for number, members in enumerate(self.classes()):
            for token in members:
                found.setdefault(token, number)
        return [found[token] for token in range(len(self.cells))]

    def rows(self, step: int) -> list[int]:
        """The tokens that a step computes, class by class."""
        classes = self.classes()
        return [token for number in self.due(step) for token in classes[number]]

    def weights(self, step: int) -> Tensor:
        """`[N, N]` float32: how much of token j's change token i receives, `Σ_j w_ij = 1`."""
        return self._weights(step % self.share.classes)

    @functools.lru_cache(maxsize=64)  # noqa: B019 - few rotations exist
    def _weights(self, step: int) -> Tensor:
        """The nearest computed tokens, as lattices place them in the plane of y and x, weighted by
        a Gaussian of one token. A computed token receives its own change, and one whose neighbours
        all lie outside of the picture that of the computed token of its rank.
        """
        classes, due = self.class_of(), self.due(step)
        place = {cell: token for token, cell in reversed(list(enumerate(self.cells)))}
        firsts = self.classes()[due[0]]
        found = torch.zeros(len(self.cells), len(self.cells))
        for token, cell in enumerate(self.cells):
            if classes[token] in due:
                found[token, token] = 1
                continue
            for dy, dx in offsets(self.share, (self.lattice(token) - due[0]) % self.share.classes):
                other = place.get(_moved(cell, dy, dx))
                if other is not None and classes[other] in due:
                    found[token, other] += math.exp(-(dy**2 + dx**2) / 2)
            if not found[token].any():
                found[token, firsts[token * len(firsts) // len(self.cells)]] = 1
        return found / found.sum(1, keepdim=True)


def offsets(share: Share, ahead: int) -> list[tuple[int, int]]:
    """Where the nearest computed tokens lie, `(dy, dx)`, from one `ahead` classes past the first.

    Equally near ones come in the order of the picture. A computed token looks nowhere.
    """
    if ahead < share.computed:
        return []
    side = range(-_REACH, _REACH + 1)
    around = [(dy, dx) for dy in side for dx in side]
    skew = SKEW[share.classes]
    computed = [
        (dy, dx) for dy, dx in around if (ahead + dx + skew * dy) % share.classes < share.computed
    ]
    return sorted(computed, key=lambda offset: offset[0] ** 2 + offset[1] ** 2)[:NEIGHBOURS]


def _moved(cell: tuple[int, ...], dy: int, dx: int) -> tuple[int, ...]:
    first = 0 if len(cell) == 2 else 1
    moved = (cell[first] + dy, cell[first + 1] + dx)
    return (*cell[:first], *moved, *cell[first + 2 :])


@dataclass
class Memory:
    """What one exit remembers of its tokens.

    Args:
        rotation: which tokens are computed.
        trend: α, how much of its own trend a token is predicted to follow; None fits it.
        gain: γ, how much of its neighbours' change it receives.
        history: values kept of a token, 1 or 2; without the second there is no trend.
    """

    rotation: Rotation
    trend: float | None = None
    gain: float = 0.5
    history: int = 2
    last: Tensor | None = None
    before: Tensor | None = None
    times: list[list[float]] = field(default_factory=list)
    fitted: Tensor | None = None
    heard: Tensor | None = None

    def forget(self) -> None:
        """The next step begins a picture."""
        self.last = self.before = self.fitted = self.heard = None
        self.times = []

    def ahead(self, now: float) -> tuple[Tensor, Tensor]:
        """By which share of its last interval every token is carried on, `[N, 1]`, and what that
        says has changed since its last value, `[B, N, C]`."""
        assert self.last is not None
        found, shares = torch.zeros_like(self.last), self.last.new_zeros(len(self.times), 1)
        for token, times in enumerate(self.times):
            if self.history == 2 and len(times) == 2 and times[0] != times[1]:
                assert self.before is not None
                shares[token] = min(max((now - times[0]) / (times[0] - times[1]), 0), LIMIT)
                found[:, token] = shares[token] * (self.last - self.before)[:, token]
        return shares, found

    def predict(self, now: float) -> Tensor:
        """`[B, N, C]`: what every token would add, by its own past alone."""
        assert self.last is not None
        shares, ahead = self.ahead(now)
        if self.fitted is None:
            assert self.trend is not None, "what is kept was fitted before"
            return self.last + self.trend * ahead
        return self.last + (1 + (self.fitted.view(-1, 1, 1) - 1) * (1 + shares) / 2) * ahead

    def fit(self, computed: Tensor, rows: list[int], now: float) -> None:
        """Take the α with which the tokens `rows` would have been predicted best."""
        if self.trend is not None or self.last is None:
            return
        if self.fitted is None:
            self.fitted = computed.new_full((len(computed),), UNFITTED)
        shares, ahead = (found[..., rows, :] for found in self.ahead(now))
        bent = (1 + shares) / 2 * ahead
        for item, (straight, bend) in enumerate(zip(ahead, bent, strict=True)):
            missed, size = computed[item] - self.last[item, rows] - straight, (bend * bend).sum()
            if size > 0:
                self.fitted[item] = (1 + (missed * bend).sum() / size).clamp(0, STEEPEST)

    def recall(self, computed: Tensor, step: int, now: float | None = None) -> Tensor:
        """What all tokens add to the residual stream, `[B, N, C]`.

        Args:
            computed: `[B, |S|, C]` of the tokens `rotation.rows(step)`.
            step: of those since the picture began that computed a share.
            now: the step's time; by default its number.
        """
        now = float(step) if now is None else now
        rows, tokens = self.rotation.rows(step), len(self.rotation.cells)
        weights = self.rotation.weights(step).to(computed)
        fresh = self.last is None
        if self.last is None:
            self.last = computed.new_zeros(len(computed), tokens, computed.shape[-1])
            self.before = self.last.clone()
            self.times = [[] for _ in range(tokens)]
        self.fit(computed, rows, now)
        predicted = torch.zeros_like(self.last) if fresh else self.predict(now)
        change = torch.zeros_like(self.last)
        change[:, rows] = computed - predicted[:, rows]
        mine = torch.zeros(tokens, dtype=torch.bool)
        due = self.rotation.due(step)
        mine[[token for token, number in enumerate(self.rotation.class_of()) if number in due]] = 1
        gain = torch.where(mine, 1.0, 1.0 if fresh else self.gain).to(computed)
        said = gain.unsqueeze(1) * (weights @ change)
        result = predicted + said
        self._store(result, mine | fresh, mine, now)
        self.heard = torch.where((mine | fresh).unsqueeze(1), 0.0, said)
        return result

    def rest(self, now: float) -> Tensor:
        """What all tokens add in a step that computes none of them; nothing of it is kept."""
        assert self.heard is not None
        return self.predict(now) + self.heard

    def learn(self, computed: Tensor, now: float) -> Tensor:
        """What all tokens add, `[B, N, C]`, in a step that computes every one of them."""
        everyone = torch.ones(computed.shape[1], dtype=torch.bool)
        if self.last is None:
            self.last = torch.zeros_like(computed)
            self.before = self.last.clone()
            self.times = [[] for _ in range(computed.shape[1])]
        self.fit(computed, list(range(computed.shape[1])), now)
        self._store(computed, everyone, everyone, now)
        self.heard = torch.zeros_like(computed)
        return computed

    def _store(self, result: Tensor, stored: Tensor, mine: Tensor, now: float) -> None:
        assert self.last is not None
        assert self.before is not None
        self.before[:, stored] = self.last[:, stored]
        self.last[:, stored] = result[:, stored]
        for token in mine.nonzero().flatten().tolist():
            self.times[token] = [now, *self.times[token][:1]]


UNFITTED = 0.5
"""α where no token has had two values yet to be fitted to."""

STEEPEST = 1.5
"""The largest α that is fitted: beyond it, what changed is not a trend."""

LIMIT = 2.0
"""How many of its own intervals a trend is followed: times that come close tell little."""
