"""Many clients at once: every picture is compared with the same one painted alone.

    python -m examples.serve.load --sizes 64x64 64x48 48x64 --replicas 2

Beside the clients some orders are abandoned half way, sizes are asked for that nobody knows, and in
the middle a replica is killed. Writes `benchmarks/results/serve_cpu.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import torch
from PIL import Image

from benchmarks.machine import describe
from examples.serve.__main__ import parser, settings_of, start, stop
from examples.serve.client import AnsweredError, Client, GivenUpError, Painted
from examples.serve.orders import Order
from examples.serve.painter import Painter
from examples.serve.settings import Settings, Size
from toma_fx.demo.prompts import PROMPTS

RESULT = Path("benchmarks/results/serve_cpu.json")
_STEPS = (4, 6, 9)  # pictures of several lengths, so that they overtake one another
_SETTLED = 10  # pictures of a replica, before its memory is looked at
_PATIENCE = 120.0  # seconds, for a replica that starts
_MIB = 2**20


class Storm:
    """Clients that share a list of orders, and what became of each.

    Args:
        url: of the server.
        orders: each is asked for once, and again until it is there.
        alone: the same pictures, painted one after the other.
        clients: at once.

    Attributes:
        fates: of orders: `equal`, `different`, or the name of an error.
        again: how often clients asked again, by why.
        memory: of each replica, MiB after each of its pictures, as its clients saw them.
        killed: the process that was killed.
    """

    def __init__(
        self, url: str, orders: Sequence[Order], alone: Sequence[Image.Image], clients: int
    ) -> None:
        self.fates: Counter[str] = Counter()
        self.again: Counter[str] = Counter()
        self.memory: dict[int, list[float]] = defaultdict(list)
        self.killed = 0
        self._url, self._orders, self._alone = url, orders, alone
        self._clients = clients

    def blow(self) -> None:
        """All orders."""
        with ThreadPoolExecutor(self._clients) as threads:
            for fate in threads.map(self._one, range(len(self._orders))):
                self.fates[fate] += 1

    def abandon(self, orders: Sequence[Order], after: float) -> None:
        """Ask for orders one after the other, and hang up on each."""
        for order in orders:
            Client(self._url).abandon(order, after)

    def _one(self, number: int) -> str:
        if number == len(self._orders) // 2:
            self._kill()
        client = Client(self._url, tries=200)
        try:
            painted = client.paint(self._orders[number])
        except (AnsweredError, GivenUpError) as error:
            return type(error).__name__
        finally:
            self.again += client.again
        self.memory[painted.replica].append(resident(painted.replica))
        return "equal" if same(painted, self._alone[number]) else "different"

    def _kill(self) -> None:
        """The replica that has painted most; whatever it holds is lost."""
        self.killed = max(self.memory, key=lambda replica: len(self.memory[replica]))
        os.kill(self.killed, signal.SIGKILL)


def same(painted: Painted, alone: Image.Image) -> bool:
    """Pixel by pixel."""
    return painted.image.size == alone.size and painted.image.tobytes() == alone.tobytes()


def resident(process: int) -> float:
    """MiB of a process on this machine; 0 where it is gone."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / _MIB


def orders_of(count: int, settings: Settings, seed: int = 0) -> list[Order]:
    """Mixed prompts, seeds, sizes and steps; no two orders are alike."""
    dice = random.Random(seed)
    seeds = dice.sample(range(10**6), count)
    return [
        Order(dice.choice(PROMPTS), seeds[i], settings.sizes[i % len(settings.sizes)], steps)
        for i, steps in enumerate(dice.choices(_STEPS, k=count))
    ]


def alone(orders: Sequence[Order], settings: Settings) -> list[Image.Image]:
    """Each by itself, in this process."""
    painter = Painter(settings.alone(), torch.device("cpu"))
    return [painter.paint(order) for order in orders]


def refusals(url: str, settings: Settings) -> dict[str, int]:
    """Orders that must be refused, by the name of the server's error."""
    known = settings.sizes[0]
    wrong = Order("red apple", 0, Size(8 * known.width, known.height), 1)
    found: Counter[str] = Counter()
    for order in (wrong, replace(wrong, size=known, steps=settings.most_steps + 1)):
        try:
            Client(url).paint(order)
        except AnsweredError as error:
            found[f"{error.status} {error.kind}"] += 1
    return dict(found)


def about(url: str, replicas: int) -> dict[int, dict[str, Any]]:
    """What each replica says of itself; they answer as they are chosen."""
    found: dict[int, dict[str, Any]] = {}
    end = time.monotonic() + _PATIENCE
    while len(found) < replicas and time.monotonic() < end:
        with urlopen(f"{url}/status") as answer:
            said = json.load(answer)
        found[said["process"]] = said
        time.sleep(0.1)
    return found


def growth(sizes: Sequence[float]) -> dict[str, float]:
    """Of a replica's memory: MiB after its first pictures, at the end and at most."""
    later = [size for size in sizes[_SETTLED:] if size]
    if not later:
        return {}
    first, last, most = later[0], later[-1], max(later)
    return {name: round(mib, 1) for name, mib in (("first", first), ("last", last), ("most", most))}


def run(settings: Settings, given: argparse.Namespace) -> dict[str, Any]:
    """The whole test; the server is gone behind it."""
    torch.set_num_threads(settings.threads)
    orders = orders_of(given.requests, settings)
    abandoned = [replace(o, steps=settings.most_steps) for o in orders[: given.abandoned]]
    pictures = alone(orders, settings)
    url = start(settings, given.port, cpus=given.cpus)
    try:
        before = about(url, settings.replicas or 1)
        storm, begun = Storm(url, orders, pictures, given.clients), time.monotonic()
        with ThreadPoolExecutor(1) as thread:
            hanging_up = thread.submit(storm.abandon, abandoned, given.after)
            storm.blow()
            hanging_up.result()
        seconds = time.monotonic() - begun
        refused = refusals(url, settings)
        after = about(url, settings.replicas or 1)
    finally:
        stop()
    merging = {size: said for one in before.values() for size, said in one["sizes"].items()}
    names = {replica: f"replica {number}" for number, replica in enumerate(storm.memory, 1)}
    return {
        "merging": merging,
        "requests": len(orders),
        "clients": given.clients,
        "fates": dict(storm.fates),
        "asked again": dict(storm.again),
        "abandoned": len(abandoned),
        "cancelled, of replicas alive at the end": sum(o["cancelled"] for o in after.values()),
        "failed, of replicas alive at the end": sum(o["failed"] for o in after.values()),
        "refused": refused,
        "killed": names.get(storm.killed),
        "started behind it": len(after.keys() - before.keys()),
        "pictures": {names[replica]: len(mib) for replica, mib in storm.memory.items()},
        "memory, MiB": {names[replica]: growth(mib) for replica, mib in storm.memory.items()},
        "seconds": round(seconds, 1),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    found = parser()
    found.add_argument("--requests", type=int, default=200)
    found.add_argument("--clients", type=int, default=8, help="at once")
    found.add_argument("--abandoned", type=int, default=10, help="orders that are hung up on")
    found.add_argument("--after", type=float, default=3.0, help="seconds, before hanging up")
    found.add_argument("--cpus", type=int, default=2, help="that Ray may use")
    found.add_argument("--out", type=Path, default=RESULT)
    given = found.parse_args(arguments)
    result = run(settings_of(given), given)
    described = describe()
    described["versions"]["ray"] = version("ray")
    given.out.write_text(json.dumps({**described, **result}, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0 if result["fates"] == {"equal": given.requests} else 1


if __name__ == "__main__":
    sys.exit(main())
