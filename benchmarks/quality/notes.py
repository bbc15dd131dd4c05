"""What stands under every table, and what no table may be written without."""

from __future__ import annotations

from benchmarks.quality import settings
from benchmarks.quality.rows import Row
from benchmarks.quality.run import Run


def notes_of(run: Run, missing: dict[str, str]) -> list[str]:
    """How the rows came about.

    Args:
        run: one table.
        missing: networks that are not there, and why.
    """
    notes = [
        f"Means of pairs of equal seed and caption, {run.steps} steps, with 95 % intervals "
        "(bootstrap over pairs; KID: over subsets).",
        "SSCD is a detector of copies, not DINO; the perceptual distance has the form of LPIPS on "
        "EfficientNet-lite0 without LPIPS's learned weights; lite0 distance is the cosine distance "
        "of its features.",
        f"Speed: generations of {run.given.batch} pictures in turns with the plain model, in "
        f"{run.given.dtype}, backend {run.given.backend}; of fewer steps, their number.",
        "FLOPs: of a generation, products and convolutions, counted as they run; of the whole "
        "model, and of its transformer blocks.",
        *_of_model(run),
        *_of_caches(run),
    ]
    notes += [f"Absent: {name}: {reason}." for name, reason in missing.items()]
    notes += [f"Skipped: {name}: {reason}." for name, reason in run.field.skipped.items()]
    return notes


def _of_model(run: Run) -> list[str]:
    notes = []
    if run.given.model in settings.NAMES:
        millions = sum(p.numel() for p in run.painter.denoiser.parameters()) / 1e6
        notes.append(
            f"The model has {millions:.1f} M parameters and draws emoji of "
            f"{settings.pixels_of(run.given)} pixels: it is neither SDXL nor Flux."
        )
    if run.dense:
        notes.append(
            f"The first {run.dense} blocks of each class stay dense in every row that merges and "
            "does not say otherwise; refresh leaves none dense."
        )
    return notes


def _of_caches(run: Run) -> list[str]:
    caches = [one for one in run.runs.values() if one.cache]
    if not caches:
        return []
    notes = [
        "Caches decide on the host, so that no graph holds the whole model: what their hooks wrap "
        "and what lies between is compiled part by part (deepcache: two whole graphs), and they "
        "are timed beside the plain model compiled whole."
    ]
    settled = [
        f"{one.name} {run.settled(one).cache.options['threshold']:.3g}"
        for one in caches
        if one.cache.share is not None
    ]
    return [*notes, *([f"Thresholds: {', '.join(settled)}."] if settled else [])]


class GateError(RuntimeError):
    """The generator does not follow its captions: no figure would mean anything."""


def gate(rows: list[Row], key: str) -> list[str]:
    """Two seeds of one caption must be closer than two captions; says by how much.

    Raises:
        GateError: they are not.
    """
    found = {row.name: row.found[key] for row in rows if key in row.found}
    if not found:
        return ["Gate: not judged: no network that reads pictures is installed."]
    if not {"another seed", "another caption"} <= found.keys():
        return []
    near, far = found["another seed"], found["another caption"]
    text = f"two seeds of a caption are {near.mean:.3g} apart, two captions {far.mean:.3g} ({key})"
    if near.high >= far.low:
        raise GateError(f"nothing is written: {text}")
    return [f"Gate: {text}."]
