"""Results of a race in one JSON file, written anew after every heat."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from benchmarks.machine import describe

RUNNING = "running"


class MixedResultsError(Exception):
    """A file holds results of another machine or other versions."""


class Store:
    """Records by the key of their case, beside the machine, versions and command.

    Args:
        path: of the file.
        facts: machine, versions and command.
        cases: records that it holds.
    """

    def __init__(self, path: Path, facts: dict[str, Any], cases: dict[str, Any]) -> None:
        self.path = path
        self.facts = facts
        self.cases: dict[str, dict[str, Any]] = cases

    @classmethod
    def open(cls, path: Path, fresh: bool = False) -> Store:
        """Results to add to, by the command that runs now; none yet where there is no file.

        Args:
            fresh: forget what the file holds.

        Raises:
            MixedResultsError: it was measured elsewhere, and must not be added to.
        """
        facts = describe()
        if fresh or not path.exists():
            return cls(path, facts, {})
        held = cls.read(path)
        for part in ("machine", "versions"):
            if held.facts[part] != facts[part]:
                raise MixedResultsError(
                    f"{path} was measured with another {part}: {held.facts[part]}; give --fresh "
                    "to start over, or another --out"
                )
        return cls(path, facts, held.cases)

    @classmethod
    def read(cls, path: Path) -> Store:
        """As the file stands, for tables and for a process that works for another."""
        facts = json.loads(path.read_text())
        cases = facts.pop("cases")
        return cls(path, facts, cases)

    def update(self, records: dict[str, dict[str, Any]]) -> None:
        """Add records and write the file, whole or not at all."""
        self.cases |= records
        self.save()

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_suffix(".tmp")
        draft.write_text(json.dumps({**self.facts, "cases": self.cases}, indent=1) + "\n")
        os.replace(draft, self.path)

    def begin(self, labels: dict[str, dict[str, Any]]) -> None:
        """Note which cases run now: if the process dies, these are to blame."""
        self.update({key: {**label, "status": RUNNING} for key, label in labels.items()})

    def blame(self, reason: str) -> None:
        """What was running has failed."""
        running = {key: case for key, case in self.cases.items() if case["status"] == RUNNING}
        failed = {"status": "failed", "reason": reason}
        self.update({key: {**case, **failed} for key, case in running.items()})

    def finished(self, key: str, retry: bool = False) -> bool:
        """Whether a case needs no run; with `retry`, one that failed does."""
        done = ("done", "skipped") if retry else ("done", "skipped", "failed")
        return self.cases.get(key, {}).get("status") in done
