"""An ahead-of-time package for a server: `python -m examples.serve.package apples.pt2`.

    python -m examples.serve.package apples.pt2 --sizes 64x64 64x48
    python -m examples.serve --package apples.pt2 --sizes 64x64 64x48

The pipeline is run up to the first call of its denoiser, once for each size; these calls are
exported. What takes the server a minute at each start takes several once, here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import toma_fx
from examples.serve.__main__ import parser, settings_of
from examples.serve.lanes import Lane, lanes_of
from examples.serve.orders import Order
from examples.serve.settings import Settings, Size
from toma_fx.errors import TomaError

Call = tuple[tuple[Any, ...], dict[str, Any]]


def main(arguments: Sequence[str] | None = None) -> int:
    found = parser()
    found.add_argument("out", type=Path, help="a .pt2 file")
    given = found.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        path = write(settings_of(given), given.out, device)
    except TomaError as error:
        print(f"examples.serve.package: {error}", file=sys.stderr)
        return 1
    print(f"{path}: {path.stat().st_size / 2**20:.0f} MiB; {toma_fx.last_report().summary()}")
    return 0


def write(settings: Settings, path: Path, device: torch.device) -> Path:
    """Export the model of a server, an entry for each of its sizes, in their order.

    Raises:
        ExportError, ConfigError: as `toma_fx.export`.
    """
    (lane,) = lanes_of(settings.alone(), device)
    calls = [first_call(lane, size) for size in settings.sizes]
    (args, kwargs), *also = calls
    config = settings.packaged()
    return toma_fx.export(lane.denoiser, args, kwargs, path=path, config=config, also=also)


class _Found(Exception):  # noqa: N818 - an answer, not a failure
    """A call of the denoiser, which need not run."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call


def first_call(lane: Lane, size: Size) -> Call:
    """What the denoiser is called with, in the first step of a picture of this size."""

    def found(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Found((args, kwargs))

    hook = lane.denoiser.register_forward_pre_hook(found, with_kwargs=True)
    try:
        lane.paint(Order("any", 0, size, 2))
    except _Found as answer:
        return answer.call
    finally:
        hook.remove()
    raise AssertionError("the pipeline never called its denoiser")


if __name__ == "__main__":
    sys.exit(main())
