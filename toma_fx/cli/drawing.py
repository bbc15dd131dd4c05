"""What a call is to draw."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Drawing:
    """A picture or a video.

    Attributes:
        height: in pixels.
        width: likewise.
        frames: of a video; 1 for a picture.
        batch: items; None for what one picture needs (two where guidance doubles it).
        references: pictures of the same size that are edited, beside the one that is drawn.
    """

    height: int
    width: int
    frames: int = 1
    batch: int | None = None
    references: int = 0
