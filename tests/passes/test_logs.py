"""What the runner tells through torch's logs and traces."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch._logging._internal import log_registry, trace_log

from tests.helpers import Block, merged, repeated_tokens


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextmanager
def listening(logger: logging.Logger) -> Iterator[list[logging.LogRecord]]:
    handler = Kept()
    logger.addHandler(handler)
    try:
        yield handler.records
    finally:
        logger.removeHandler(handler)


@pytest.mark.parametrize(
    ("level", "graphs"), [(logging.INFO, []), (logging.DEBUG, ["before", "after"])]
)
def test_torch_logs_show_the_report_and_the_graphs(level: int, graphs: list[str]) -> None:
    torch._logging.set_logs(modules={"toma_fx": level})
    try:
        with listening(logging.getLogger("toma_fx")) as records:
            merged(Block(), repeated_tokens(2, 64))
    finally:
        torch._logging.set_logs()
    told = [record.getMessage() for record in records if record.name == "toma_fx.passes.logs"]
    assert "1 of 1 regions merged" in told[0]
    assert [text.split()[1] for text in told[1:]] == graphs
    assert [("toma_fx.plan_" in text) for text in told[1:]] == [name == "after" for name in graphs]


def test_nobody_is_told_without_asking() -> None:
    with listening(logging.getLogger("toma_fx")) as records:
        merged(Block(), repeated_tokens(2, 64))
    assert not records


def test_the_name_is_one_of_torchs_logs() -> None:
    assert log_registry.log_alias_to_log_qnames["toma_fx"] == ["toma_fx"]


@pytest.mark.parametrize("ratio", [0.5, 0])
def test_traces_hold_the_report_and_the_graphs(ratio: float) -> None:
    with listening(trace_log) as records:
        merged(Block(), repeated_tokens(2, 64), ratio=ratio)
    found = {}
    for record in records:
        artifact = getattr(record, "metadata", {}).get("artifact", {})
        if artifact.get("name", "").startswith("toma_fx"):
            found[artifact["name"]] = record.payload  # type: ignore[attr-defined]
    after = {"toma_fx_graph_after"} if ratio else set()
    assert set(found) == {"toma_fx_report", "toma_fx_graph_before"} | after
    assert '"status"' in found["toma_fx_report"]
    assert all("toma_fx.plan_" in found[name] for name in after)
