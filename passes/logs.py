"""What the runner tells: torch's logs, and artifacts that tlparse shows.

    TORCH_LOGS="toma_fx"     the report of every compile
    TORCH_LOGS="+toma_fx"    the graphs before and after as well
    TORCH_TRACE=<folder>     both, for tlparse

Nothing is formatted unless someone listens.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import fx
from torch._logging import trace_structured
from torch._logging._internal import register_log

from toma_fx.report import Report

register_log("toma_fx", "toma_fx")
_log = logging.getLogger(__name__)


def record(report: Report, before: fx.GraphModule | None, after: fx.GraphModule | None) -> None:
    """Tell what a run of the passes did.

    Args:
        report: of the run.
        before: the normalised graph, None where tracing was refused.
        after: the merged graph, None where nothing merges.
    """
    if _log.isEnabledFor(logging.INFO):
        _log.info("%s", report)
    _artifact("toma_fx_report", "json", report.to_dict)
    for name, graph in (("before", before), ("after", after)):
        if graph is None:
            continue
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("graph %s merging:\n%s", name, _text(graph))
        _artifact(f"toma_fx_graph_{name}", "string", partial(_text, graph))


def tell_passed_on(reason: str) -> None:
    """Tell that a graph goes to the compiler behind the passes as it is."""
    _log.info("graph passed on: %s", reason)


def _artifact(name: str, encoding: str, payload: Callable[[], Any]) -> None:
    trace_structured("artifact", lambda: {"name": name, "encoding": encoding}, payload_fn=payload)


def _text(graph: fx.GraphModule) -> str:
    return str(graph.print_readable(print_output=False))
