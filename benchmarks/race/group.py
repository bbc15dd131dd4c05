"""One model at one picture size, in the process that runs it."""

from __future__ import annotations

import argparse
import os
import time

import diffusers
import torch
from rich.console import Console
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.race.contestants import CONTESTANTS, REFERENCE
from benchmarks.race.crew import race_apart
from benchmarks.race.grid import Case, heats
from benchmarks.race.heat import prepare, race
from benchmarks.race.member import Post
from benchmarks.race.models import arguments_of, model_of, plain_flops
from benchmarks.race.start import setting_of
from benchmarks.race.store import Store
from toma_fx.report import seconds_text

DEFAULTS = {"cpu": {"cycles": 1, "heat": 9}, "cuda": {"cycles": 3, "heat": 2}}


@torch.no_grad()
def run_group(
    cases: list[Case], store: Store, device: torch.device, given: argparse.Namespace, out: Console
) -> None:
    """Race the cases that are not finished, heat by heat, each saved at once.

    Args:
        cases: all of one group.
        store: of the results.
        given: the arguments of `benchmarks.speed`.
    """
    settle_compilers(device)
    left = [case for case in cases if not store.finished(case.key, given.retry)]
    left = _without_slow_compiles(left, store, device, given)
    if not left:
        return
    model, height, width = left[0].model, left[0].height, left[0].width
    if given.together > 1:
        _race_apart(left, store, device, given, out)
        return
    module = model_of(model, device)
    arguments = arguments_of(model, module, height, width)
    setting = setting_of(module, arguments, device, given.backend)
    flops = plain_flops(model, height, width)
    defaults = DEFAULTS[device.type]
    cold = not given.warm_caches and given.level != "quick"
    plain = Case(model, height, width, CONTESTANTS[REFERENCE], None)
    # All contestants run the same attention: flash, or plain matmuls where it cannot run.
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
        reference = prepare(plain, setting, cold and plain in left)
        for heat in heats(left, given.heat or defaults["heat"]):
            if time.time() > given.until:
                return
            store.begin({case.key: case.labels for case in heat})
            cycles = given.cycles or defaults["cycles"]
            records = race(heat, setting, reference, cycles=cycles, cold=cold, flops=flops)
            store.update(records)
            _tell(records, out)


def _race_apart(
    cases: list[Case], store: Store, device: torch.device, given: argparse.Namespace, out: Console
) -> None:
    """The cases of a group in processes of their own, `given.together` of them at once."""
    model, height, width = cases[0].model, cases[0].height, cases[0].width
    plain = Case(model, height, width, CONTESTANTS[REFERENCE], None)
    flops = plain_flops(model, height, width)
    threads = max(1, (os.cpu_count() or 1) // given.together)
    cycles = given.cycles or DEFAULTS[device.type]["cycles"]

    def post(case: Case) -> Post:
        return Post(case, device.type, given.backend, threads)

    for first in range(0, len(cases), given.together):
        if time.time() > given.until:
            return
        heat = cases[first : first + given.together]
        store.begin({case.key: case.labels for case in heat})
        records = race_apart(heat, plain, post, cycles=cycles, flops=flops, until=given.until)
        store.update(records)
        _tell(records, out)


def _tell(records: dict[str, dict], out: Console) -> None:
    for key, record in records.items():
        out.print(f"{key:60} {_line(record)}", highlight=False, soft_wrap=True)


def settle_compilers(device: torch.device) -> None:
    """Room for many compiled models, kernels with names; and pay once for what starts compilers."""
    diffusers.utils.logging.set_verbosity_error()  # it warns of every cast
    torch._dynamo.config.recompile_limit = 64
    torch._inductor.config.cpp.enable_kernel_profile = True
    torch.compile(lambda x: (x @ x).relu().sum(-1))(torch.ones(64, 64, device=device))


def _without_slow_compiles(
    cases: list[Case], store: Store, device: torch.device, given: argparse.Namespace
) -> list[Case]:
    """Skip, on a CPU, what compiles for many minutes, unless it is asked for."""
    asked = given.level == "all" or device.type != "cpu"
    slow = [c for c in cases if c.contestant.slow_to_compile and not asked]
    slow = [c for c in slow if c.contestant.name not in given.contestants]
    reason = "compiles for many minutes on a CPU: name it with --contestants, or --all"
    skipped = {"status": "skipped", "reason": reason}
    store.update({case.key: {**case.labels, **skipped} for case in slow})
    return [case for case in cases if case not in slow]


def _line(record: dict) -> str:
    if record["status"] != "done":
        return f"{record['status']}: {record['reason']}"
    return f"{seconds_text(record['seconds'])} a step, {record['speedup']:.2f}×"
