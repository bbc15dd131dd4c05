"""Which of several pipelines with one scheduler is running.

Every pipeline of diffusers that knows guidance stores its scale where a picture begins. An equal
number takes its place here; when the pipeline stores it anew, it is another object.
"""

from __future__ import annotations

from typing import Any

from torch.utils.weak import WeakIdKeyDictionary

_NAME, _PROPERTY = "_guidance_scale", "guidance_scale"
_marks: WeakIdKeyDictionary = WeakIdKeyDictionary()


def mark(pipeline: object) -> None:
    """Put an equal number where the pipeline keeps its guidance scale."""
    scale = vars(pipeline).get(_NAME)
    if isinstance(scale, int | float):
        scale = vars(pipeline)[_NAME] = float(scale) + 0.0  # a new object
    _marks[pipeline] = scale


def announced(candidates: list[Any]) -> Any:
    """The only pipeline that began a picture since it was marked; None where that is not clear.

    One that never stores a guidance scale is taken at its word, if there is no other.
    """
    began = [p for p in candidates if vars(p).get(_NAME) is not _marks.get(p)]
    if len(began) == 1:
        return began[0]
    silent = len(candidates) == 1 and not hasattr(type(candidates[0]), _PROPERTY)
    return candidates[0] if silent and not began else None
