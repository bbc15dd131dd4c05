"""A body is an order, or a refusal whose status and words a client can act on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from examples.serve.orders import MalformedError, Order, RefusedError, UnknownSizeError
from tests.examples.serve.conftest import SQUARE, WIDE, settings


def read(**body: Any) -> Order:
    return Order.read(json.dumps(body), settings())


def test_what_is_not_said_is_usual() -> None:
    assert read(prompt="red apple") == Order("red apple", 0, SQUARE, 2)


def test_an_order_is_read_as_it_was_written() -> None:
    order = Order("smiling cat", 2**63 - 1, WIDE, 50)
    assert Order.read(order.write(), settings()) == order


@pytest.mark.parametrize(
    ("body", "kind", "status", "said"),
    [
        (b"", MalformedError, 400, "no JSON"),
        (b"\xff", MalformedError, 400, "no JSON"),
        (b"[1]", MalformedError, 400, "must be an object"),
        ({}, RefusedError, 422, "prompt must be text"),
        ({"prompt": ""}, RefusedError, 422, "1 to 2000 characters"),
        ({"prompt": "a" * 2001}, RefusedError, 422, "1 to 2000 characters"),
        ({"prompt": ["a"]}, RefusedError, 422, "prompt must be text"),
        ({"prompt": "a", "seed": -1}, RefusedError, 422, "seed must be a whole number from 0"),
        ({"prompt": "a", "seed": 2**63}, RefusedError, 422, "seed must be"),
        ({"prompt": "a", "seed": True}, RefusedError, 422, "seed must be"),
        ({"prompt": "a", "steps": 0}, RefusedError, 422, "steps must be a whole number from 1"),
        ({"prompt": "a", "steps": 51}, RefusedError, 422, "from 1 to 50, not 51"),
        ({"prompt": "a", "steps": 1.5}, RefusedError, 422, "steps must be"),
        ({"prompt": "a", "size": 64}, RefusedError, 422, "WIDTHxHEIGHT"),
        ({"prompt": "a", "size": "64x64"}, UnknownSizeError, 422, "16x16, 24x16, 16x24"),
        ({"prompt": "a", "ratio": 0.5}, RefusedError, 422, "unknown: ratio; known are prompt"),
    ],
)
def test_refusals(body: Any, kind: type[RefusedError], status: int, said: str) -> None:
    text = body if isinstance(body, bytes) else json.dumps(body)
    with pytest.raises(RefusedError, match=said) as caught:
        Order.read(text, settings())
    assert type(caught.value) is kind
    assert caught.value.status == status
