"""A report as a picture: one bar a region, coloured by its fate, as high as its time."""

from __future__ import annotations

from pathlib import Path

from toma_fx.errors import MissingPackageError
from toma_fx.report import RegionReport, Report

_COLOURS = {"merged": "tab:green", "skipped": "tab:orange", "refused": "tab:red"}
_SHORT = {
    "self_attention": "self-attention",
    "cross_attention": "cross-attention",
    "joint_attention": "joint attention",
    "parallel": "parallel",
    "feed_forward": "feed-forward",
}


def save_picture(report: Report, path: str | Path) -> Path:
    """Write a strip of the model's regions, in graph order, for each kind a row.

    The pale bar is a region's time at full length, the strong one as it will run. Where nothing
    predicted times, bars show FLOPs.

    Args:
        report: of `explain` or of a compile.
        path: of the file; its suffix decides the format (`.png`, `.svg`, `.pdf`).

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError as error:
        raise MissingPackageError("the picture", "matplotlib", "demo") from error
    kinds = [kind for kind in _SHORT if any(r.kind == kind for r in report.regions)] or [""]
    figure = Figure(figsize=(11, 1.2 + 1.5 * len(kinds)), layout="constrained")
    FigureCanvasAgg(figure)
    timed = any(region.seconds_before for region in report.regions)
    rows = figure.subplots(len(kinds), 1, sharex=True, squeeze=False)[:, 0]
    for axes, kind in zip(rows, kinds, strict=True):
        for place, region in enumerate(report.regions):
            if region.kind == kind:
                colour = _COLOURS[region.status]
                before, after = _heights(region, timed)
                axes.bar(place, before, width=1.0, color=colour, alpha=0.25)
                axes.bar(place, after, width=1.0, color=colour)
        axes.set_title(_SHORT.get(kind, ""), loc="left", fontsize=9)
        axes.set_ylabel("ms" if timed else "GFLOP", fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    rows[-1].set_xlabel("regions, in the order of the graph")
    marks = [Patch(color=colour, label=status) for status, colour in _COLOURS.items()]
    rows[0].legend(
        handles=marks, fontsize=8, ncols=3, loc="lower right", bbox_to_anchor=(1, 1), frameon=False
    )
    title = report.summary() + (f"\n{report.forecast}" if report.forecast else "")
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=120)
    return Path(path)


def _heights(region: RegionReport, timed: bool) -> tuple[float, float]:
    if timed:
        return region.seconds_before * 1e3, region.seconds_after * 1e3
    return region.flops_before / 1e9, region.flops_after / 1e9
