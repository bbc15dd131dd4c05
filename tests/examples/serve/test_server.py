"""The deployment under Ray Serve, on this machine alone; without Ray these are skipped."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.request import urlopen

import pytest
import torch

pytest.importorskip("ray", reason="Ray is not installed: pip install toma_fx[serve]")

from examples.serve.__main__ import start, stop
from examples.serve.client import AnsweredError, Client
from examples.serve.load import alone, orders_of, same
from examples.serve.orders import Order
from examples.serve.settings import Settings, Size

SETTINGS = Settings(sizes=(Size(64, 64), Size(32, 48)), steps=2, queued=1, backend="eager")
LONG = Order("red apple", 0, Size(64, 64), 50)
pytestmark = pytest.mark.xdist_group("ray")


@pytest.fixture(autouse=True)
def _tiny() -> None:
    """Replicas are other processes: the generators are the project's own."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    yield start(SETTINGS, port, cpus=2)
    stop()


def status(url: str) -> dict[str, Any]:
    with urlopen(f"{url}/status") as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def until(true: Any) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_pictures_at_once_are_those_alone_and_the_busy_server_says_so(url: str) -> None:
    torch.set_num_threads(1)
    orders = orders_of(12, SETTINGS)
    pictures = alone(orders, SETTINGS)
    clients = [Client(url, tries=200) for _ in orders]
    found: dict[int, Any] = {}

    def ask(number: int) -> None:
        found[number] = clients[number].paint(orders[number])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(orders))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(found[i], picture) for i, picture in enumerate(pictures))
    assert sum(client.again["busy"] for client in clients) > 0
    assert all("24 of 24 regions merged" in said for said in status(url)["sizes"].values())


@pytest.mark.parametrize(
    ("order", "kind"),
    [
        (Order("red apple", 0, Size(512, 512), 2), "UnknownSizeError"),
        (Order("red apple", 0, Size(64, 64), 51), "RefusedError"),
    ],
)
def test_a_refusal_has_a_status_and_a_name(url: str, order: Order, kind: str) -> None:
    with pytest.raises(AnsweredError) as caught:
        Client(url).paint(order)
    assert (caught.value.status, caught.value.kind) == (422, kind)


def test_a_client_that_hangs_up_stops_its_picture(url: str) -> None:
    before = status(url)
    Client(url).abandon(LONG, after=0.3)
    until(lambda: status(url)["cancelled"] > before["cancelled"])
    assert status(url)["busy"] == 0
    assert status(url)["painted"] == before["painted"]


def test_a_replica_that_dies_is_replaced_and_its_order_painted(url: str) -> None:
    first = status(url)["process"]
    client, found = Client(url, tries=200), []
    thread = threading.Thread(target=lambda: found.append(client.paint(LONG)))
    thread.start()
    until(lambda: status(url)["busy"] == 1)
    os.kill(first, signal.SIGKILL)
    thread.join()
    assert found[0].replica != first
    assert sum(client.again.values()) > 0
