"""Which tokens are the picture: they are merged, and all others stay at full length.

Why: a graph names no stream. Text, a second picture that is to be edited and sound go through the
same blocks. What tells the picture is where its tokens begin, whether they reach the output, and
the grid that they stand on.

Before: the streams of all entries. After: each region's origin and layout, or why it has none. Some
of it shows only in what regions read (`geometry`), so that `learn` may ask for a second proof.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from toma_fx.errors import CannotRewrite
from toma_fx.passes.find.region import Region
from toma_fx.passes.graph.outside import Outside
from toma_fx.passes.layouts.layout import Origin, Segment, TokenLayout
from toma_fx.passes.layouts.origins import Cuts, Key, Piece, Stream
from toma_fx.passes.layouts.streams import Streams

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
Grid = tuple[int, ...] | str | None
_NAME_IT = "name the picture with TomaConfig(grid=(height, width)), a video's with frames first"


class Pictures:
    """Tells the picture's tokens from others.

    A picture is a stream that folds sides and unfolds them again or reaches the output, else the
    one whose token axis reaches the output. Where several do, it is the one that stands on a grid
    of pixels, or of which `grid`, or whoever is outside, gives the size.

    Args:
        candidates: the streams of all entries.
        streams: of their graph.
        grid: `TomaConfig.grid`.
        start: `TomaConfig.grid_start`.
        apart: whether the pictures that are edited stay at full length.
        outside: what is known of the picture beside that.
    """

    def __init__(
        self,
        candidates: list[Stream],
        streams: Streams,
        grid: Grid,
        start: int,
        apart: bool,
        outside: Outside,
    ) -> None:
        self._grid = grid if isinstance(grid, tuple) else None
        self._start = start
        self._apart = apart
        self._origins = {origin.key: origin for stream in candidates for origin in stream}
        pictures = streams.unfolded | streams.reaching
        folded = {key for key, origin in self._origins.items() if origin.grid and key in pictures}
        reaching = {key for key in self._origins if key in streams.reaching}
        self._keys = folded or reaching or self._named()
        if not folded and self._grid and len(reaching) > 1:
            self._keys = self._of_size(reaching)
        elif not folded and len(reaching) > 1:
            told = {key for key in reaching if outside.knows(self._origins[key].length)}
            self._keys = told or self._keys
        self._sides = streams.sides
        drawn = self._keys & set(self._sides)
        if len(drawn) == 1 and not folded:
            self._keys = drawn
        self._rivals = self._keys if len(self._keys) > 1 and not folded else set()
        self._many = sorted(self._origins[key].length for key in reaching)

    def _named(self) -> set[Key]:
        """The streams of the size that a user names, where none reaches the output."""
        size = math.prod(self._grid) if self._grid else 0
        return {key for key, origin in self._origins.items() if origin.length == size}

    def _of_size(self, reaching: set[Key]) -> set[Key]:
        """The streams that are the named picture, else the one that holds it behind its start."""
        size = math.prod(self._grid or ())
        exact = {key for key in reaching if self._origins[key].length == size}
        holding = {key for key in reaching if self._origins[key].length >= self._start + size}
        return exact or (holding if self._start and len(holding) == 1 else set())

    def locate(self, region: Region, stream: Stream) -> None:
        """Set the region's layout and origin, or say why none of its tokens is merged."""
        value = region.entry.meta["val"]
        if value.dtype not in FLOATS:
            raise CannotRewrite(f"activations are {value.dtype}, not floating point", region.entry)
        if value.shape[1] == 1:
            region.drop("skipped", "a single token: there is nothing to merge")
            return
        latent = [origin for origin in stream if origin.key in self._keys]
        if not latent:
            unknown = "no stream reaches the output by operations that are known: " + _NAME_IT
            text = "text stream: its tokens are never merged"
            region.drop("skipped", text if self._keys else unknown)
            return
        region.origin = max(latent, key=lambda origin: origin.length)
        if region.origin.grid is None and not region.origin.start:
            sides = self._sides.get(region.origin.key, ())
            region.grid = sides if math.prod(sides) == region.origin.length else None
        segments = tuple(Segment(origin.length, origin is region.origin) for origin in stream)
        region.layout = TokenLayout(1, 0, segments)

    def learn(self, regions: Iterable[Region]) -> Cuts | None:
        """What proven regions tell of their streams, if anything that changes them.

        Returns:
            Where streams have to be cut into pictures, maybe nowhere; None where all stays.
        """
        known = [region for region in regions if region.origin is not None]
        decided = self._settle(known)
        cuts: Cuts = {}
        for region in known:
            origin = region.origin
            assert origin is not None
            if origin.key in self._keys and origin.key not in cuts:
                try:
                    pieces = self._pieces(region, origin)
                except CannotRewrite as refusal:
                    region.drop("refused", str(refusal))
                    continue
                if pieces:
                    cuts[origin.key] = pieces
        for key, pieces in cuts.items():
            self._keys = (self._keys - {key}) | {self._merged_piece(key, pieces)}
        return cuts if cuts or decided else None

    def _settle(self, regions: list[Region]) -> bool:
        """Choose among streams that all reach the output."""
        if not self._rivals:
            return False
        sides = {r.origin.key for r in regions if r.origin and _has_sides(r)} & self._rivals
        if len(sides) == 1:
            self._keys, self._rivals = sides, set()
            return True
        sizes = " and ".join(map(str, self._many))
        for region in regions:
            if region.origin is not None and region.origin.key in self._rivals:
                region.drop(
                    "refused",
                    f"streams of {sizes} tokens reach the output: {_NAME_IT}",
                )
        return False

    def _pieces(self, region: Region, origin: Origin) -> tuple[Piece, ...]:
        """The pictures that a stream holds, and what else is packed with them."""
        if region.pictures and self._apart:
            return region.pictures
        size = math.prod(self._grid) if self._grid else 0
        exact = any(self._origins[key].length == size for key in self._keys & set(self._origins))
        if not self._grid or exact or origin.grid or region.grid or region.pictures:
            return ()
        rest = origin.length - self._start - size
        if rest < 0 and self._start:
            raise CannotRewrite(
                f"grid of {size} tokens from token {self._start} on does not fit into "
                f"{origin.length}: change grid or grid_start"
            )
        if rest < 0 or not (self._start or (rest and self._apart)):
            return ()
        pieces = (Piece(self._start), Piece(size, self._grid), Piece(rest))
        return tuple(piece for piece in pieces if piece.length)

    def _merged_piece(self, key: Key, pieces: tuple[Piece, ...]) -> Key:
        """The picture that is drawn comes first, but for one of which `grid` gives the size."""
        name, axis, at = key
        size = math.prod(self._grid) if self._grid else 0
        starts = [at + sum(piece.length for piece in pieces[:i]) for i in range(len(pieces))]
        drawn = [start for start, p in zip(starts, pieces, strict=True) if p.length == size]
        first = [start for start, p in zip(starts, pieces, strict=True) if p.grid]
        return name, axis, (drawn or first)[0]


def _has_sides(region: Region) -> bool:
    return region.grid is not None or region.positions is not None or bool(region.pictures)
