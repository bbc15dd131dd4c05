"""One page that shows what the demonstration found: for looking, without a network.

All of it is inside the file: pictures as data URIs, style, and a line of script. `page.html` beside
this module says how it looks; here stands what it shows.
"""

from __future__ import annotations

import base64
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jinja2 import Environment, StrictUndefined
from PIL import Image
from torch import Tensor

from toma_fx.demo.comparison import Comparison
from toma_fx.demo.photograph import Patches, Restored
from toma_fx.demo.pictures import contact_sheet, draw_destinations, to_image
from toma_fx.demo.pipelines import Job
from toma_fx.report import RegionReport, seconds_text

if TYPE_CHECKING:
    from toma_fx.demo.prompts import Drawing

_ENLARGED = 4
_SHARES = {0.25: "A quarter", 0.5: "Half", 0.75: "Three quarters"}


@dataclass
class Story:
    """What the parts of the demonstration found; a part that did not run is empty.

    Attributes:
        ratio: share of tokens removed in the pipelines.
        pipelines: each job with its measurements.
        prompts: what each generator drew.
        photograph: the patches, and the picture restored at each ratio.
    """

    ratio: float
    pipelines: list[tuple[Job, Comparison]] = field(default_factory=list)
    prompts: list[Drawing] = field(default_factory=list)
    photograph: tuple[Patches, Sequence[Restored]] | None = None


def write_page(story: Story, folder: Path) -> Path:
    """Write `index.html`.

    Args:
        story: what there is to show.
        folder: created where missing; a page in it is replaced.

    Raises:
        OSError: the file cannot be written.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    source = files("toma_fx.demo").joinpath("page.html").read_text(encoding="utf-8")
    text = environment.from_string(source).render(
        share=_SHARES.get(story.ratio, f"{story.ratio:.0%}"),
        pipelines=[_pipeline(*part) for part in story.pipelines],
        hero=_hero(story.prompts[-1], story.ratio) if story.prompts else None,
        generators=[_generator(part) for part in story.prompts],
        photograph=_photograph(*story.photograph) if story.photograph else None,
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        instructions=torch.backends.cpu.get_cpu_capability(),
    )
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "index.html"
    file.write_text(text, encoding="utf-8")
    return file


def _pipeline(job: Job, found: Comparison) -> dict[str, Any]:
    longest = max(*found.plain, *found.merged)
    report, reuse = found.report, found.reuse
    return {
        "name": job.name,
        "detail": job.detail,
        "tokens": f"{max((region.tokens for region in report.regions), default=0):,}",
        "speed": f"{found.speedup:.2f}",
        "spread": f"{min(found.speedups):.2f} … {max(found.speedups):.2f}×",
        "runs": len(found.plain),
        "why": found.why_slower(),
        "bars": [_bar(name, getattr(found, name), longest) for name in ("plain", "merged")],
        "change": f"{found.change:.1%}",
        "summary": report.summary(),
        "forecast": str(report.forecast or ""),
        "regions": [_region(members) for members in report.classes()],
        "plans": (
            f"Over {reuse.steps} steps destinations were chosen {reuse.selections} times; "
            f"{reuse.reuses} steps reused them."
        ),
        "compiled": [f"{seconds:.0f} s" for seconds in found.compile_seconds],
    }


def _bar(name: str, steps: Sequence[float], longest: float) -> dict[str, Any]:
    """A median as a length, and its spread, in percent of the longest step."""
    median = statistics.median(steps)
    ends = {"low": min(steps), "at": median, "high": max(steps)}
    lengths = {end: round(100 * seconds / longest, 1) for end, seconds in ends.items()}
    return {"name": name, "text": seconds_text(median), **lengths}


def _region(members: Sequence[RegionReport]) -> dict[str, Any]:
    first = members[0]
    before, after = (
        sum(getattr(m, f"flops_{side}") for m in members) for side in ("before", "after")
    )
    return {
        "kind": first.kind.replace("_", " "),
        "tokens": f"{first.tokens:,}",
        "merged": f"{first.merged_tokens:,}" if first.status == "merged" else "",
        "channels": first.channels,
        "count": len(members),
        "status": first.status,
        "reason": first.reason,
        "giga": f"{before / 1e9:.3g}",
        "giga_left": f"{after / 1e9:.3g}",
        "left": round(100 * after / before) if before else 100,
    }


def _hero(drawing: Drawing, ratio: float) -> list[dict[str, str]]:
    """The first prompt, plain and at the ratio that is nearest to that of the pipelines."""
    plain, *others = drawing.drawn
    nearest = min(others, key=lambda one: abs(one.ratio - ratio))
    prompt = drawing.prompts[0]
    return [
        {"prompt": prompt, "title": one.title, "picture": _enlarged(one.pictures[0])}
        for one in (plain, nearest)
    ]


def _generator(drawing: Drawing) -> dict[str, Any]:
    plain = drawing.drawn[0]
    return {
        "name": drawing.name,
        "note": drawing.note,
        "prompts": list(drawing.prompts),
        "rows": [
            {
                "title": one.title,
                "merged": bool(one.ratio),
                "left": f"{one.left:.0%}",
                "change": f"{one.change(plain):.1%}",
                "pictures": [_enlarged(picture) for picture in one.pictures],
            }
            for one in drawing.drawn
        ],
    }


def _photograph(patches: Patches, restored: Sequence[Restored]) -> dict[str, Any]:
    count, size, _ = patches.pixels.shape
    return {
        "tokens": f"{patches.grid[0] * patches.grid[1]:,}",
        "windows": count,
        "size": size,
        "original": _uri(to_image(patches.picture)),
        "sheet": _uri(contact_sheet(patches, restored)),
        "ratios": [
            {
                "name": f"{one.ratio:.0%}",
                "kept": f"{one.kept:,}",
                "quality": f"{one.quality:.1f} dB",
                "random": f"{one.random_quality:.1f} dB",
                "destinations": _uri(draw_destinations(patches, one.chosen)),
                "restored": _uri(to_image(one.picture)),
            }
            for one in restored
        ],
    }


def _enlarged(picture: Tensor) -> str:
    """`[3, height, width]` in [0, 1], smoothly enlarged: for looking, not for counting pixels."""
    image = to_image(picture.permute(1, 2, 0))
    size = (_ENLARGED * image.width, _ENLARGED * image.height)
    return _uri(image.resize(size, Image.Resampling.BICUBIC))


def _uri(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
