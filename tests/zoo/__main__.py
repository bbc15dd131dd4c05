"""`python -m tests.zoo [NAME …]`: measures models, all of them by default, and writes the table."""

from __future__ import annotations

import argparse
import logging
import sys
import time
import traceback

import torch

from tests.zoo.entries import entries
from tests.zoo.measure import measure
from tests.zoo.table import read, summary, write


def main() -> int:
    """Measure, print a line for each model, and write what was measured into the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.zoo", description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of names; without any, all models")
    parser.add_argument("--shard", default="1/1", metavar="I/N", help="every N-th model, from I on")
    parser.add_argument("--dry", action="store_true", help="leave the table as it is")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    index, count = map(int, arguments.shard.split("/"))
    failed = 0
    models = entries()
    for name in sorted(models)[index - 1 :: count]:
        if arguments.names and not any(part in name for part in arguments.names):
            continue
        started = time.perf_counter()
        try:
            row = measure(models[name])
        except Exception:
            failed += 1
            print(f"{name}: FAILED\n{traceback.format_exc()}", flush=True)
            continue
        print(f"{time.perf_counter() - started:5.1f} s  {name}: {summary(row)}", flush=True)
        if not arguments.dry:
            write({**read(), name: row})
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
