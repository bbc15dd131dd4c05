"""Where Dynamo compiles no more, a model behind `torch.compile(backend="toma")` says so."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.test_backend import Mlp
from toma_fx import LimitWarning, last_report, toma_backend
from toma_fx.limits import Limit, readable, shared_advice

OPTIONS: dict[str, Any] = {"inner_backend": "eager", "regions": "all"}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=2), torch.no_grad():
        yield
    torch._dynamo.reset()


@contextmanager
def limits() -> Iterator[list[LimitWarning]]:
    """The warnings that are raised inside."""
    found: list[LimitWarning] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield found
    found += [entry.message for entry in caught if isinstance(entry.message, LimitWarning)]


def picture(width: int) -> Tensor:
    return torch.randn(1, 16, 16, width, generator=torch.Generator().manual_seed(width))


def by_name(model: nn.Module) -> Callable[..., Tensor]:
    return torch.compile(model, backend="toma", options=dict(OPTIONS))


def by_function(model: nn.Module) -> Callable[..., Tensor]:
    return torch.compile(model, backend=toma_backend, options=dict(OPTIONS))


def by_partial(model: nn.Module) -> Callable[..., Tensor]:
    return torch.compile(model, backend=functools.partial(toma_backend, options=OPTIONS))


@pytest.mark.parametrize("compiled", [by_name, by_function, by_partial])
def test_the_limit_is_said_once(compiled: Callable[[nn.Module], Callable[..., Tensor]]) -> None:
    model = Mlp()
    run = compiled(model)
    with limits() as found:
        results = {width: run(picture(width)) for width in (16, 20, 24, 28)}
    (warning,) = found
    assert (warning.limit, warning.value) == ("recompile_limit", 2)
    assert "size mismatch" in warning.reason
    for told in ("recompile_limit (2)", warning.reason, "forward", "toma_fx.diffusers.apply"):
        assert told in str(warning)
    report = last_report()
    assert not report.merged
    assert "recompile_limit (2) is met" in report.plain
    assert "the plain model runs: recompile_limit (2)" in str(report).replace("\n", " ")
    same = [torch.allclose(r, model(picture(w))) for w, r in results.items()]
    assert same == [False, False, True, True]


def test_a_count_that_others_used_up_is_said_too() -> None:
    """No graph of this model was ever compiled."""
    for width in (16, 20):
        torch.compile(Mlp(), backend="eager", dynamic=False)(picture(width))
    model = Mlp()
    with limits() as found:
        result = by_name(model)(picture(24))
    assert len(found) == 1
    assert torch.equal(result, model(picture(24)))


def test_limits_of_other_backends_are_none_of_ours() -> None:
    by_name(Mlp())(picture(16))
    before = last_report()
    with limits() as found:
        for width in (16, 20, 24, 28):
            torch.compile(Mlp(), backend="eager", dynamic=False)(picture(width))
    assert not found
    assert last_report() is before


def test_a_warning_that_is_an_error_stops_the_call() -> None:
    run = by_name(Mlp())
    for width in (16, 20):
        run(picture(width))
    with warnings.catch_warnings():
        warnings.simplefilter("error", LimitWarning)
        with pytest.raises(LimitWarning, match="recompile_limit"):
            run(picture(24))


def test_a_guard_behind_a_view_is_told_in_words_that_help() -> None:
    """Dynamo gives an error of its own check for the reason."""
    cause = readable("'NoneType' object has no attribute 'stride'")
    limit = Limit("recompile_limit", 8, "'forward'", cause)
    text = limit.message(shared_advice(limit))
    assert "NoneType" not in text
    for told in ("behind a view", "dynamic=False", "recompile_limit to twice the number of sizes"):
        assert told in text
    assert readable("tensor 'x' size mismatch") == "tensor 'x' size mismatch"
