"""Entry of `toma-fx` and of `python -m toma_fx`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from toma_fx.cli import bench, bisect, doctor, explain, package
from toma_fx.errors import ConfigError, ModelError, TomaError

_COMMANDS: dict[str, tuple[Any, str]] = {
    "explain": (explain, "what would be merged and what it is worth, without running the model"),
    "bench": (bench, "time a denoising step on this machine, plain and merged"),
    "bisect": (bisect, "name the merged regions that change the result too much"),
    "export": (package.Export, "write a package of native code that runs without Python rewriting"),
    "run-package": (package.RunPackage, "load such a package and time its steps"),
    "doctor": (doctor, "what is installed, and what that enables"),
}
_EXIT_CODES = "exit codes: 0 done, 1 it failed, 2 wrong arguments or configuration, 130 interrupted"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Errors are one line on stderr; -v traces them."""
    # Before diffusers is imported: nothing here loads from a hub.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    given, rest = _parser().parse_known_args(arguments)
    try:
        with _quiet(given.verbose):
            return _run(given, rest)
    except KeyboardInterrupt:
        return 130
    except (TomaError, OSError) as error:
        return _failed(
            error, given.verbose, 2 if isinstance(error, ConfigError | ModelError) else 1
        )
    except Exception as error:
        return _failed(error, given.verbose, 1)


def _run(given: argparse.Namespace, rest: list[str]) -> int:
    if given.command == "demo":
        from toma_fx.demo.__main__ import main as demo

        return demo(rest)
    if rest:
        _parser().error(f"unrecognized arguments: {' '.join(rest)}")
    given.run(given)
    return 0


@contextmanager
def _quiet(verbose: bool) -> Iterator[None]:
    """Without what other packages have to say, which hides the lines that matter."""
    with warnings.catch_warnings():
        if not verbose:
            warnings.simplefilter("ignore")
            logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def _failed(error: Exception, verbose: bool, code: int) -> int:
    if verbose:
        traceback.print_exception(error)
    known = isinstance(error, TomaError | OSError)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    name = "" if known else f"{type(error).__name__}: "
    more = "" if verbose or known else " (-v shows the trace)"
    print(f"toma-fx: {name}{' '.join(lines[:1])}{more}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "toma-fx", description="Token merging as a compiler pass.", epilog=_EXIT_CODES
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="show the trace of errors")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, text) in _COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text, epilog=_EXIT_CODES)
        module.add(command)
        command.set_defaults(run=module.run)
    commands.add_parser(
        "demo", add_help=False, help="small SDXL and Flux pipelines and a photograph, merged"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
