"""`toma_fx.load`: a package as a callable with the model's signature, statistics and reset."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from toma_fx import guard
from toma_fx.ahead.package import Entry, check_machine, check_members, read_description
from toma_fx.ahead.signature import Caller
from toma_fx.ahead.transform import first_line
from toma_fx.errors import CallError, PackageError
from toma_fx.reuse import ReuseStats

_TALLY = "toma_guard_tally"


def load(path: str | Path) -> LoadedModel:
    """Load a package that `toma_fx.export` wrote.

    A package holds native code, which this runs: load only what you trust, as you would a shared
    library. Nothing else in toma_fx loads one. What it says of itself is read and checked first,
    and so are the checksums of all that it holds, which takes a second or two a gigabyte.

    Args:
        path: the `.pt2` file.

    Returns:
        A callable with the signature of the model's `forward`. All entries are loaded; each holds
        its weights in memory.

    Raises:
        FileNotFoundError: there is no such file.
        PackageError: it is cut short or damaged, or not written by `toma_fx.export`.
        MismatchError: it was built for another device, processor or torch release.
    """
    place = Path(path)
    description = read_description(place)
    check_machine(place, description)
    check_members(place, description)
    return LoadedModel(place, description)


class LoadedModel:
    """A package in memory. Calls change its plans, so they must not overlap.

    Attributes:
        metadata: what the package says of itself: `model` (its class), `config`, `ratio`,
            `entries` (inputs and report of each), `device`, `versions`.
    """

    def __init__(self, path: Path, description: dict[str, Any]) -> None:
        self.metadata = description
        self._caller = Caller.from_list(description["parameters"])
        entries = [Entry.from_dict(entry) for entry in description["entries"]]
        self._runners = [_Runner(path, entry) for entry in entries]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one step, in the signature of the model's `forward`.

        Raises:
            CallError: no entry was built for these arguments; the message says what differs.
        """
        given = self._caller.leaves(args, kwargs)
        differences = []
        for runner in self._runners:
            difference = runner.differs(given, self._caller.defaults)
            if not difference:
                return runner.run(given)
            differences.append(difference)
        raise CallError(self._refusal(differences))

    def reset(self) -> None:
        """Forget all plans: the next call selects anew. Statistics stay."""
        for runner in self._runners:
            runner.forget()

    def stats(self) -> ReuseStats:
        """What the reuse cache did since the package was loaded, over all entries."""
        total = ReuseStats()
        for runner in self._runners:
            total.groups += runner.entry.groups
            if runner.tally is not None:
                total.count(runner.tally)
        return total

    def _refusal(self, differences: list[str]) -> str:
        if len(differences) == 1:
            return f"the package was not built for this call: {differences[0]}"
        names = [runner.entry.name for runner in self._runners]
        lines = (f"{name}: {reason}" for name, reason in zip(names, differences, strict=True))
        return "no entry of the package was built for this call; " + "; ".join(lines)


class _Runner:
    """One entry: its native code, and the buffer that counts."""

    def __init__(self, path: Path, entry: Entry) -> None:
        self.entry = entry
        self.tally: Tensor | None = None
        try:
            # Not through `load_package`: it warns where it should refuse.
            self._loader = torch._C._aoti.AOTIModelPackageLoader(
                str(path), entry.name, False, 1, -1
            )
            self._result = pytree.treespec_loads(self._loader.get_call_spec()[1])
            if _TALLY in self._loader.get_constant_fqns():
                self._own_tally()
        except (RuntimeError, ValueError, KeyError) as error:
            raise PackageError(f"{path} cannot be loaded: {first_line(error)}") from error

    def _own_tally(self) -> None:
        """Keep the counts in a tensor of this process: torch gives no way to read constants back.

        The package reads and writes it in place, as it would its own.
        """
        device = torch.device(self.entry.device)
        self.tally = guard.cold_tally(device)
        self._loader.load_constants({_TALLY: self.tally}, False, False, True)

    def differs(self, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
        return self.entry.call.differs(given, defaults, shapes=not self.entry.dynamic)

    def run(self, given: Mapping[str, Any]) -> Any:
        inputs = [given[leaf.path].contiguous() for leaf in self.entry.call.tensors]
        try:
            with torch.no_grad():
                results = self._loader.run(inputs)
        except BaseException:
            self.forget()  # plans may be half made
            raise
        return pytree.tree_unflatten(results, self._result)

    def forget(self) -> None:
        if self.tally is not None:
            self.tally[guard.FRESH] = guard.RESET
