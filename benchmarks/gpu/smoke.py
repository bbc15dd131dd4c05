"""First contact: a small model plain and merged on a GPU, beside a CPU in float32.

    python -m benchmarks.gpu.smoke sdxl-small --out smoke.json

Each method makes six steps of one picture. In float32 a GPU merges the same tokens as a CPU, but
for ties: the result must be ten times nearer to the CPU's than merging moves it. In bfloat16 other
tokens may win: the result must be no further from the CPU's than two merged pictures are from one
another, and than bfloat16 moves the plain model (far: it rounds the timestep too).
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import toma_fx
from benchmarks.gpu.notes import Notes
from benchmarks.race.heat import failed
from benchmarks.race.models import arguments_of, model_of
from benchmarks.race.start import Setting, SkipError, setting_of, start
from toma_fx.config import METHODS

STEPS = 6  # selections and reuses among them
_ROUNDING = {torch.float32: 2e-3, torch.bfloat16: 0.7}  # of the plain model, at most
_NEAR, _APART = 0.1, 1.5


class Course:
    """One model and where its results are compared.

    Args:
        name: of the model.
        side: of the picture in pixels.
        ratio: of tokens that are merged away.
        device: what is tried.
        backend: what compiles on it; a CPU compiles nothing.
    """

    def __init__(
        self, name: str, side: int, ratio: float, device: torch.device, backend: str
    ) -> None:
        self.name, self.ratio, self.device, self.backend = name, ratio, device, backend
        host = torch.device("cpu")
        model = model_of(name, host)
        self.host = setting_of(model, arguments_of(name, model, side, side), host, "eager")
        self._expected: dict[str | None, Tensor] = {}

    def expected(self, method: str | None) -> Tensor:
        """The results of the host."""
        if method not in self._expected:
            self._expected[method] = self.steps(self.host, method)
        return self._expected[method]

    def setting(self, dtype: torch.dtype) -> Setting:
        """The same model, weights and inputs on the device."""

        def there(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: there(part) for name, part in value.items()}
            if not isinstance(value, Tensor):
                return value
            kept = value.dtype if value.ndim < 2 or not value.is_floating_point() else dtype
            return value.to(self.device, kept)

        model: nn.Module = copy.deepcopy(self.host.model).to(self.device, dtype)
        first = (there(self.host.first[0]), there(self.host.first[1]))
        rest, timestep = there(self.host.rest), self.host.timestep.to(self.device)
        return Setting(model, self.device, first, rest, timestep, self.backend)

    def steps(self, setting: Setting, method: str | None) -> Tensor:
        """The results of all steps, in float32 on the host: plain without a method.

        Raises:
            SkipError: nothing merges.
        """
        if method is None:
            entry = start(setting, "compile", {}, None)
        else:
            entry = start(setting, "toma", {"method": method, "min_tokens": 16}, self.ratio)
        found = [entry.step(number).float().cpu() for number in range(STEPS)]
        entry.check(entry)
        return torch.stack(found)

    def judge(self, method: str | None, dtype: torch.dtype, rounding: float) -> dict[str, Any]:
        """How near the device is, and how near it has to be.

        Args:
            rounding: how far the plain model is from the host's, in the same precision.
        """
        setting = self.setting(dtype)
        found = self.steps(setting, method)
        if method is None:
            return _row(distance(found, self.expected(None)), 0.0, _ROUNDING[dtype])
        merged = self.expected(method)
        change = distance(merged, self.expected(None))
        share = _NEAR if dtype == torch.float32 else _APART
        row = _row(distance(found, merged), change, share * change + 3 * rounding)
        if method == "toma":
            stats = toma_fx.reuse_stats(setting.model)
            row["reuse"] = {"selections": stats.selections, "reuses": stats.reuses}
        return row


def _row(error: float, change: float, allowed: float) -> dict[str, Any]:
    return {"error": error, "change": change, "allowed": allowed, "good": error <= allowed}


def distance(result: Tensor, expected: Tensor) -> float:
    """Relative, over all steps; not a number where the result holds none."""
    return float((result - expected).norm() / expected.norm())


@torch.no_grad()
def run(given: argparse.Namespace) -> bool:
    """Whether everything is as near as it has to be."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    notes = Notes(given.out)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    course = Course(given.model, given.side, given.ratio, device, given.backend)
    good = True
    for kind in given.dtypes:
        dtype, rounding = getattr(torch, kind), 0.0
        # The first alone in float32 as well: kernels differ by precision, methods by kernels.
        methods = given.methods if kind == "bfloat16" else given.methods[:1]
        for method in (None, *methods):
            labels = {"model": given.model, "dtype": kind, "method": method or "plain"}
            try:
                row = course.judge(method, dtype, rounding)
                rounding = row["error"] if method is None else rounding
            except SkipError as reason:
                row = {"skipped": str(reason), "good": True}
            except Exception as error:
                row = {**failed(error), "good": False}
            notes.add({**labels, **row})
            print(f"{given.model} {kind} {labels['method']}: {_words(row)}", flush=True)
            good = good and row["good"]
    return good


def _words(row: dict[str, Any]) -> str:
    if "error" not in row:
        return row.get("skipped") or row["reason"]
    verdict = "good" if row["good"] else "TOO FAR"
    return f"{verdict}: {row['error']:.2g}, allowed {row['allowed']:.2g}"


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--side", type=int, default=512, help="pixels")
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--backend", default="inductor")
    parser.add_argument("--out", type=Path, required=True)
    return parser


def main() -> int:
    return 0 if run(arguments().parse_args()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
