"""Asks a server for pictures, and asks again where it is busy, or where a replica is gone."""

from __future__ import annotations

import http.client
import io
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from PIL import Image

from examples.serve.orders import Order
from toma_fx.errors import TomaError

_BUSY = 503
_TIMEOUT = 600.0  # seconds


class GivenUpError(TomaError, RuntimeError):
    """The server did not paint an order, however often it was asked."""


class AnsweredError(TomaError, ValueError):
    """The server refuses the order; the message is its own.

    Attributes:
        status: of HTTP.
        kind: the name of the server's error.
    """

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind


@dataclass(frozen=True)
class Painted:
    """A picture, and the process that painted it."""

    image: Image.Image
    replica: int


@dataclass
class Client:
    """One picture at a time. An order is always the same picture, so that asking again is safe.

    Args:
        url: of the server.
        tries: of an order, before it is given up.
        pause: seconds before the second try; twice as long before each that follows, up to
            `longest`, less a random part, so that clients do not come back together.
        longest: pause.

    Attributes:
        again: how often it asked again, by why: an HTTP status, or the name of an error.
    """

    url: str
    tries: int = 30
    pause: float = 0.1
    longest: float = 5.0
    again: Counter[str] = field(default_factory=Counter)

    def paint(self, order: Order) -> Painted:
        """
        Raises:
            AnsweredError: the order is refused.
            GivenUpError: all tries failed.
        """
        why = ""
        for number in range(self.tries):
            if number:
                self.again[why] += 1
                time.sleep(min(self.longest, self.pause * 2 ** (number - 1)) * random.random())
            try:
                status, replica, body = self._ask(order)
            except (OSError, http.client.HTTPException) as error:
                why = type(error).__name__
                continue
            if status == 200:
                return Painted(Image.open(io.BytesIO(body)).convert("RGB"), int(replica))
            if status < 500:
                raise _answered(status, body)
            why = "busy" if status == _BUSY else str(status)
        raise GivenUpError(f"{self.url} was asked {self.tries} times; the last time: {why}")

    def abandon(self, order: Order, after: float) -> None:
        """Ask until the server takes the order on, and hang up after so many seconds."""
        for _ in range(self.tries):
            connection = self._connection(after)
            try:
                connection.request("POST", "/pictures", order.write())
                connection.getresponse()  # that it is busy
            except TimeoutError:
                return
            except (OSError, http.client.HTTPException):
                pass
            finally:
                connection.close()
            time.sleep(self.pause)

    def _ask(self, order: Order) -> tuple[int, str, bytes]:
        connection = self._connection()
        try:
            connection.request("POST", "/pictures", order.write())
            answer = connection.getresponse()
            return answer.status, answer.headers.get("x-replica", "0"), answer.read()
        finally:
            connection.close()

    def _connection(self, timeout: float = _TIMEOUT) -> http.client.HTTPConnection:
        parts = urlsplit(self.url)
        return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)


def _answered(status: int, body: bytes) -> AnsweredError:
    try:
        said = json.loads(body)
        return AnsweredError(status, said["error"], said["message"])
    except (ValueError, KeyError, TypeError):
        return AnsweredError(status, "", body.decode(errors="replace"))
