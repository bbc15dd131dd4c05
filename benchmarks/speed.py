"""The race: token merging beside everything that a user would pick instead.

    python -m benchmarks.speed                    # the whole grid of this machine
    python -m benchmarks.speed --quick            # at most ten minutes on two cores
    python -m benchmarks.speed --minutes 8        # as far as that goes; run again to go on

Writes `speed_DEVICE.json` after every heat, then a Markdown table and plots beside it. A run that
was interrupted goes on where it stopped. Each model and picture size has a process of its own, so
that one that dies takes nothing with it.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.race import plots, table
from benchmarks.race.contestants import CONTESTANTS
from benchmarks.race.grid import Case, Size, cases_of
from benchmarks.race.group import run_group
from benchmarks.race.store import MixedResultsError, Store

# Threads that wait give up their core; the profiler prints a line each time it starts.
QUIET = {"OMP_WAIT_POLICY": "passive", "KINETO_LOG_LEVEL": "5"}
RESULTS = Path(__file__).parent / "results"
MORE = 3


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    level = parser.add_mutually_exclusive_group()
    level.add_argument("--quick", action="store_const", dest="level", const="quick")
    for name, what in (("toy", "tiny models"), ("blocks", "a few blocks of the models of today")):
        level.add_argument(f"--{name}", action="store_const", dest="level", const=name, help=what)
    level.add_argument(
        "--all", action="store_const", dest="level", const="all", help="the whole product"
    )
    parser.set_defaults(level="default")
    parser.add_argument("--on", choices=("cpu", "cuda"), help="default: a GPU where there is one")
    parser.add_argument("--models", nargs="+", default=[], metavar="MODEL")
    parser.add_argument(
        "--sizes", nargs="+", default=[], type=size_of, metavar="WIDTHxHEIGHT", help="in pixels"
    )
    parser.add_argument("--ratios", nargs="+", default=[], type=float, metavar="RATIO")
    parser.add_argument("--contestants", nargs="+", default=[], choices=list(CONTESTANTS))
    parser.add_argument("--cycles", type=int, help="timed cycles of ten steps of each contestant")
    parser.add_argument("--heat", type=int, help="contestants that race together")
    parser.add_argument(
        "--together",
        type=int,
        default=1,
        help="contestants that compile at once, each in a process of its own (default: 1)",
    )
    parser.add_argument(
        "--backend", default="inductor", help='of torch.compile; "parts" tells parts of a step'
    )
    parser.add_argument("--minutes", type=float, help="start nothing new after this time")
    parser.add_argument(
        "--strict", action="store_true", help=f"exit with {MORE} where the time was too short"
    )
    parser.add_argument("--warm-caches", action="store_true", help="do not compile cold")
    parser.add_argument("--retry", action="store_true", help="try again what failed")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--report", action="store_true", help="only the table and the plots")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--one", metavar="GROUP", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, default=float("inf"), help=argparse.SUPPRESS)
    return parser


def size_of(text: str) -> Size:
    """`832x1216` as height and width; one number is a square."""
    width, _, height = text.partition("x")
    return int(height or width), int(width)


def slug(device: torch.device) -> str:
    """`cpu`, or a GPU's name as part of a file name."""
    if device.type == "cpu":
        return "cpu"
    return re.sub(r"\W+", "_", torch.cuda.get_device_name().lower())


def run_processes(cases: list[Case], store: Store, given: argparse.Namespace) -> None:
    """Every group with cases to run in a process of its own, again for as long as it gets on."""
    end = time.time() + 60 * given.minutes if given.minutes else float("inf")
    for group in dict.fromkeys(case.group for case in cases):
        while time.time() < end:
            left = [c for c in cases if c.group == group and not store.finished(c.key, given.retry)]
            if not left:
                break
            before = dict(store.cases)
            command = [sys.executable, "-m", "benchmarks.speed", *sys.argv[1:]]
            environment = {**QUIET, **os.environ}
            rest = ["--one", group, "--until", str(end)]
            code = subprocess.run([*command, *rest], env=environment).returncode
            store.cases = Store.read(store.path).cases
            reason = f"the process died with exit code {code}"
            store.blame(reason)
            if code and store.cases == before:  # before any heat: the model, or its plain compile
                dead = {"status": "failed", "reason": reason}
                store.update({case.key: {**case.labels, **dead} for case in left})
            if store.cases == before or given.retry:
                break
        write_report(store)


def write_report(store: Store) -> None:
    """The table and the plots of what is there."""
    store.path.with_suffix(".md").write_text(table.markdown(store))
    plots.draw(store, store.path.with_suffix(""))


def main() -> None:
    given = arguments().parse_args()
    console = Console()
    device = torch.device(given.on or ("cuda" if torch.cuda.is_available() else "cpu"))
    suffix = "" if given.level in ("default", "all") else f"_{given.level}"
    path = given.out / f"speed_{slug(device)}{suffix}.json"
    cases = cases_of(
        device.type,
        given.level,
        models=given.models,
        sizes=given.sizes,
        ratios=given.ratios,
        contestants=given.contestants,
    )
    if given.one:
        mine = [case for case in cases if case.group == given.one]
        run_group(mine, Store.read(path), device, given, console)
        return
    try:
        store = Store.read(path) if given.report else Store.open(path, given.fresh)
    except MixedResultsError as error:
        sys.exit(f"speed: {error}")
    if not given.report:
        store.save()
        run_processes(cases, store, given)
    write_report(store)
    console.print(table.console(store))
    console.print(f"written: {path}, .md and .png beside it", soft_wrap=True)
    if given.strict and not all(store.finished(case.key) for case in cases):
        sys.exit(MORE)


if __name__ == "__main__":
    main()
