"""Calls as leaves by path: what is given by place, by name or by default."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest
import torch
from torch import Tensor

from toma_fx.ahead.signature import Call, Caller, describe_call, sorted_call
from toma_fx.errors import CallError, ExportError


def forward(
    sample: Tensor, time: Tensor, more: Any = None, *, flag: bool = True, **rest: Any
) -> None: ...


SIGNATURE = inspect.signature(forward)
SAMPLE, TIME, IDS = torch.zeros(1, 2), torch.zeros(()), torch.zeros(3, dtype=torch.int64)
CALLER = Caller(SIGNATURE)


def call_of(*args: Any, **kwargs: Any) -> Call:
    return describe_call(SIGNATURE, *sorted_call(SIGNATURE, args, kwargs))


def difference(call: Call, *args: Any, **kwargs: Any) -> str:
    return call.differs(CALLER.leaves(args, kwargs), CALLER.defaults)


def test_leaves_stand_in_the_order_of_the_package_inputs() -> None:
    call = call_of(SAMPLE, flag=False, extra=IDS, more={"b": IDS, "a": (TIME, 3)}, time=TIME)
    assert [leaf.path for leaf in call.leaves] == [
        "sample",
        "time",
        "more['b']",
        "more['a'][0]",
        "more['a'][1]",
        "flag",
        "rest['extra']",
    ]
    assert [leaf.dtype for leaf in call.tensors] == ["float32"] * 2 + ["int64", "float32", "int64"]


def test_a_call_fits_however_it_is_spelled() -> None:
    call = call_of(SAMPLE, time=TIME)
    assert difference(call, SAMPLE, TIME) == ""
    assert difference(call, time=TIME, sample=SAMPLE, more=None, flag=True) == ""
    assert (
        difference(call, SAMPLE, TIME, flag=1) == "flag was not given when the model was exported"
    )
    assert "more" in difference(call, SAMPLE, TIME, IDS)
    assert "rest['x']" in difference(call, SAMPLE, TIME, x=None)


def test_differences_are_named() -> None:
    call = call_of(SAMPLE, TIME, {"ids": IDS}, flag=False)
    assert difference(call, SAMPLE, TIME, {"ids": IDS}) == "flag must be False, not True"
    assert difference(call, SAMPLE, TIME, flag=False) == "more['ids'] is missing"
    assert "sample is float32 [2, 2] on cpu, not float32 [1, 2] on cpu" in difference(
        call, torch.zeros(2, 2), TIME, {"ids": IDS}, flag=False
    )
    assert "time is 1.0, not" in difference(call, SAMPLE, 1.0, {"ids": IDS}, flag=False)


def test_descriptions_survive_json() -> None:
    call = call_of(SAMPLE, TIME, [IDS, None, "text"])
    assert Call.from_list(json.loads(json.dumps(call.to_list()))) == call
    parameters = json.loads(json.dumps(CALLER.to_list()))
    again = Caller.from_list(parameters)
    assert again.to_list() == CALLER.to_list()
    assert again.defaults == CALLER.defaults
    assert again.leaves((SAMPLE, TIME), {}).keys() == CALLER.leaves((SAMPLE, TIME), {}).keys()


def test_a_default_that_json_cannot_hold_is_only_left_out() -> None:
    def odd(sample: Tensor, dtype: torch.dtype = torch.float32) -> None: ...

    signature = inspect.signature(odd)
    call = describe_call(signature, (SAMPLE,), {})
    caller = Caller.from_list(json.loads(json.dumps(Caller(signature).to_list())))
    assert call.differs(caller.leaves((SAMPLE,), {}), caller.defaults) == ""
    given = caller.leaves((SAMPLE, torch.float32), {})
    assert call.differs(given, caller.defaults) == "dtype was not given when the model was exported"


def test_example_tensors_are_made_contiguous() -> None:
    (given,), _ = sorted_call(inspect.signature(lambda sample: None), (torch.ones(2, 3).t(),), {})
    assert given.is_contiguous()


def test_calls_that_no_model_takes() -> None:
    with pytest.raises(ExportError, match="missing a required argument: 'time'"):
        sorted_call(SIGNATURE, (SAMPLE,), {})
    with pytest.raises(CallError, match="too many positional"):
        CALLER.leaves((SAMPLE, TIME, None, None), {})
