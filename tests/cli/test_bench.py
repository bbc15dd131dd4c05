"""What is timed: plain and merged under the same mode of the compiler."""

from __future__ import annotations

import pytest
import torch
from torch._inductor import list_mode_options

from toma_fx import TomaConfig
from toma_fx.cli.bench import contestants


@pytest.mark.parametrize("mode", [None, *list_mode_options()])
def test_every_mode_can_be_asked_for(mode: str | None) -> None:
    """`torch.compile` refuses a mode beside options; nothing is compiled before the first call."""
    calls = contestants(torch.nn.Linear(2, 2), {"timestep": torch.ones(1)}, TomaConfig(), mode)
    assert list(calls) == ["torch.compile", "toma"]
