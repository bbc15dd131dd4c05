"""A client comes back where the server is busy or gone, and not where it is refused."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from examples.serve.client import AnsweredError, Client, GivenUpError
from examples.serve.orders import Order
from tests.examples.serve.conftest import SQUARE

ORDER = Order("red apple", 0, SQUARE, 2)


class Server(ThreadingHTTPServer):
    """Answers in turn with what it is told; 0 hangs up, and -1 says nothing for a while."""

    def __init__(self, *answers: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = list(answers)
        self.asked: list[bytes] = []
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.server.asked.append(self.rfile.read(int(self.headers["content-length"])))
        status = self.server.answers.pop(0)
        if status == -1:
            self.server.released.wait(10)
        if status <= 0:
            self.close_connection = True
            return
        file = io.BytesIO()
        Image.new("RGB", (16, 16), (200, 0, 0)).save(file, "png")
        said = json.dumps({"error": "UnknownSizeError", "message": "no pictures of it"})
        self.send_response(status)
        self.send_header("x-replica", "7")
        self.end_headers()
        self.wfile.write(file.getvalue() if status == 200 else said.encode())

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    found: list[Server] = []
    yield found
    for server in found:
        server.released.set()
        server.shutdown()
        server.server_close()


def serving(servers: list[Server], *answers: int) -> Server:
    servers.append(Server(*answers))
    threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
    return servers[-1]


def test_it_asks_again_and_counts_why(servers: list[Server]) -> None:
    server = serving(servers, 503, 503, 0, 500, 200)
    client = Client(server.url, pause=0.001)
    painted = client.paint(ORDER)
    assert painted.replica == 7
    assert painted.image.getpixel((0, 0)) == (200, 0, 0)
    assert client.again == {"busy": 2, "RemoteDisconnected": 1, "500": 1}
    assert set(server.asked) == {ORDER.write()}


def test_a_refusal_is_an_error_at_once(servers: list[Server]) -> None:
    server = serving(servers, 422)
    with pytest.raises(AnsweredError, match="no pictures of it") as caught:
        Client(server.url).paint(ORDER)
    assert (caught.value.status, caught.value.kind) == (422, "UnknownSizeError")
    assert len(server.asked) == 1


def test_it_gives_up_in_the_end(servers: list[Server]) -> None:
    server = serving(servers, *[503] * 3)
    with pytest.raises(GivenUpError, match="3 times; the last time: busy"):
        Client(server.url, tries=3, pause=0.001).paint(ORDER)


def test_abandoning_means_that_the_server_had_taken_it_on(servers: list[Server]) -> None:
    server = serving(servers, 503, -1)
    Client(server.url, pause=0.001).abandon(ORDER, after=0.2)
    assert len(server.asked) == 2
