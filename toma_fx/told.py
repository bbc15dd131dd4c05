"""What a denoiser's call tells of its picture: the sides of the grid of tokens."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from torch import Tensor

from toma_fx.arguments import Arguments, Call
from toma_fx.passes.graph.outside import grid_of_positions
from toma_fx.passes.layouts.origins import whole_rows
from toma_fx.shards import WHOLE, Shard
from toma_fx.unchanged import Unchanged

_IDS = ("img_ids", "image_ids")
_SIDES = ("num_frames", "height", "width")


class Told:
    """Reads a call where a block of the model is compiled; that waits for the device.

    Args:
        arguments: how calls of the model are read.
        call: the call that runs.
        config: of the model; its `patch_size` tells how many latents are a token.
        shard: which of the call's tokens reach a block.
    """

    def __init__(self, arguments: Arguments, call: Call, config: Any, shard: Shard = WHOLE) -> None:
        self._named = arguments.by_name(call)
        self._latents = self._named.get(arguments.latents_name)
        self._config = config
        self._shard = shard

    def sides(self) -> Hashable:
        """What tells pictures of other sides apart; of coordinates it reads the largest.

        That waits for the device, once for each tensor of them: a pipeline makes one a picture.
        """
        if isinstance(self._latents, Tensor) and self._latents.dim() > 3:
            return tuple(self._latents.shape[2:])
        named = [repr(self._named.get(name)) for name in (*_SIDES, "img_shapes")]
        return (*named, *(_largest(ids) for ids in map(self._named.get, _IDS)))

    def grid(self, tokens: int) -> tuple[int, ...] | None:
        """Sides of the picture of so many tokens; None where the call does not tell, or it is no
        picture of one grid. Of a rank's tokens they are those of its rows."""
        count = self._shard.count
        sides = self._whole_grid(tokens)
        if sides is None and count > 1 and self.positions(tokens) is None:
            sides = self._whole_grid(tokens * count)
            return sides and whole_rows(sides, self._shard.rank * tokens, tokens)
        return sides

    def _whole_grid(self, tokens: int) -> tuple[int, ...] | None:
        ids = self.positions(tokens)
        grids = [grid_of_positions(ids)] if ids is not None else [*self._named_grids()]
        latents = self._latents
        if ids is None and isinstance(latents, Tensor) and latents.dim() in (4, 5):
            grids += self._patched([int(side) for side in latents.shape[2:]], tokens)
        return next((g for g in grids if g is not None and math.prod(g) == tokens), None)

    def positions(self, tokens: int) -> Tensor | None:
        """`[N, k]` coordinates of the picture's tokens, or of a rank's, on the host."""
        for name in _IDS:
            ids = self._named.get(name)
            if isinstance(ids, Tensor):
                rows = ids[0] if ids.dim() == 3 else ids
                if rows.dim() != 2 or not 2 <= rows.shape[1] <= 4:
                    continue
                if len(rows) == tokens * self._shard.count:
                    rows = self._shard.own(rows)
                if len(rows) == tokens:
                    return rows.detach().cpu()
        return None

    def _named_grids(self) -> Iterable[tuple[int, ...]]:
        """Of latents that come as `[B, N, C]`, with their sides beside them."""
        sides = [self._named.get(name) for name in _SIDES]
        if all(isinstance(side, int) for side in sides):
            yield tuple(int(side) for side in sides if side is not None)
        shape = _only(self._named.get("img_shapes"))
        if shape:
            yield shape[1:] if len(shape) == 3 and shape[0] == 1 else shape

    def _patched(self, sides: list[int], tokens: int) -> list[tuple[int, ...]]:
        """Latents `[B, C, H, W]` or `[B, C, T, H, W]` in patches, by the model's patch size.

        A UNet has none: there it is the one side that gives so many tokens, rounded up where its
        levels are.
        """
        patch = getattr(self._config, "patch_size", None)
        if isinstance(patch, int):
            patch = [getattr(self._config, "patch_size_t", None) or 1, patch, patch][-len(sides) :]
        if isinstance(patch, Sequence) and len(patch) == len(sides):
            return [tuple(a // int(b) for a, b in zip(sides, patch, strict=True))]
        *frames, height, width = sides
        scales = range(1, max(min(height, width), 1) + 1)
        grids = [(*frames, -(-height // p), -(-width // p)) for p in scales]
        return [g for g in dict.fromkeys(grids) if math.prod(g) == tokens][:1]


def _only(shapes: Any) -> tuple[int, ...]:
    """The sides of the only picture of all items, `[[(1, h, w)], …]`; none where there are more."""
    while isinstance(shapes, Sequence) and shapes and all(one == shapes[0] for one in shapes):
        if isinstance(shapes[0], int):
            break
        if isinstance(shapes[0], Sequence) and all(isinstance(s, int) for s in shapes[0]):
            return tuple(shapes[0]) if len(shapes) == 1 else ()
        shapes = shapes[0]
    return ()


def _largest(ids: object) -> tuple[float, ...]:
    """Of each column; remembered as long as the tensor stays as it is."""
    return _read(ids) if isinstance(ids, Tensor) else ()


_read: Unchanged[tuple[float, ...]] = Unchanged(
    lambda ids: tuple(ids.flatten(0, -2).amax(0).tolist())
)
