"""The same run as tasks of Ray, on the devices of one machine or several.

A task paints a shard (`crew.shard`) into the folder of `--work`, which all machines must share. One
that is lost with its machine is tried again by Ray, and goes on where it stopped, as does the whole
run. Times are taken behind all of it, by the process that asked: on a busy device they mean
nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.quality import crew, run
from benchmarks.quality.score import Judge
from toma_fx.errors import MissingPackageError


def paint(given: argparse.Namespace) -> None:
    """Paint all that is missing; the devices are free again behind it.

    Raises:
        MissingPackageError: Ray is not installed.
        ValueError: a folder holds pictures of other options, steps or prompts.
    """
    try:
        import ray
    except ImportError:
        raise MissingPackageError("--engine ray", "ray", "serve") from None
    ray.init(address=given.ray, include_dashboard=False, log_to_driver=False, **_cpus(given))
    try:
        resources = ray.cluster_resources()
        device = "GPU" if resources.get("GPU") else "CPU"
        count = given.shards or max(1, int(resources[device]))

        def task(function: Callable[..., None], *numbers: int) -> Any:
            remote = ray.remote(function)
            return remote.options(**{f"num_{device.lower()}s": 1}).remote(given, *numbers)

        # Folders are claimed, and thresholds of caches settled, by one process, before others look.
        ray.get(task(prepare))
        ray.get([task(shard, index, count) for index in range(count)])
    finally:
        ray.shutdown()


def prepare(given: argparse.Namespace) -> None:
    """Claim every folder for its contestant, and settle caches."""
    with crew.apart(0, 1):
        for one_run in _runs(given):
            for one in one_run.runs.values():
                one_run.claim(one)
                one_run.settled(one)


def shard(given: argparse.Namespace, index: int, count: int) -> None:
    """Paint one of so many shards of every contestant; the first counts FLOPs too."""
    with crew.apart(index, count):
        run.paint(_runs(given))


def _runs(given: argparse.Namespace) -> list[run.Run]:
    """Untimed and unjudged, on the device that Ray gave."""
    untimed = argparse.Namespace(**{**vars(given), "rounds": 0})
    name = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return run.runs_of(untimed, torch.device(name), Judge({}))


def _cpus(given: argparse.Namespace) -> dict[str, int]:
    """Of a Ray that starts here: as many as there are shards, as each takes one."""
    return {"num_cpus": given.shards} if given.ray == "local" and given.shards else {}
