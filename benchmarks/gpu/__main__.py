"""`python -m benchmarks.gpu`: see the package."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from benchmarks.gpu.phases import wanted
from benchmarks.gpu.runner import Course

_RESERVE = 10.0  # seconds for the last summary


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=(__doc__ or ""))
    parser.add_argument("--minutes", type=float, default=25.0, help="of this call (default: 25)")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of results; a later call goes on there"
    )
    parser.add_argument("--only", default="", metavar="A,B", help="phases by name")
    parser.add_argument("--toy", action="store_true", help="tiny models on a CPU")
    parser.add_argument("--retry", action="store_true", help="run again what failed")
    parser.add_argument(
        "--pack", type=Path, metavar="FOLDER", help="write everything into at most 8 files there"
    )
    parser.add_argument("--report", action="store_true", help="the summary alone")
    return parser


def main(given: argparse.Namespace | None = None) -> int:
    given = given or arguments().parse_args()
    start = time.monotonic()
    try:
        phases = wanted(given.only)
    except ValueError as error:
        sys.exit(f"gpu: {error}")
    if not given.toy and not given.report and not _has_gpu():
        sys.exit("gpu: there is no CUDA device here; --toy tries the phases on a CPU")
    given.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, _interrupt)  # so that what runs is ended, and summed up

    def sum_up() -> None:
        from benchmarks.gpu import summary

        summary.write(given.out)
        if given.pack:
            summary.pack(given.out, given.pack)

    course = Course(
        folder=given.out,
        until=start + 60 * given.minutes - _RESERVE,
        toy=given.toy,
        retry=given.retry,
        tell=lambda line: print(line, flush=True),
        after=sum_up,
    )
    try:
        if not given.report:
            course.run(phases)
    except KeyboardInterrupt:
        print("interrupted: the next call goes on", flush=True)
    sum_up()
    print(f"written: {given.out}/summary.md")
    return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    raise SystemExit(main())
