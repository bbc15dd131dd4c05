from __future__ import annotations

import pytest
import torch
from torch import Tensor

from toma_fx import reference
from toma_fx.kernels.fallback import pseudo_inverse, select_always, weigh_always


def assignment(temperature: float, repeated: bool = False) -> Tensor:
    torch.manual_seed(3)
    tokens = torch.randn(4, 64, 32)
    if repeated:
        tokens[:, 32:] = tokens[:, :32]
    picks = torch.arange(16, 48).expand(4, -1)
    return reference.assignment(tokens, picks, temperature)


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("temperature", [1e-3, 0.05, 0.2])
def test_pseudo_inverse_is_the_reference_without_a_wait(temperature: float, repeated: bool) -> None:
    weights = assignment(temperature, repeated)
    expected = reference.unmerge_matrix(weights, "pinv")
    torch.testing.assert_close(pseudo_inverse(weights), expected, rtol=1e-2, atol=2e-3)


def test_pseudo_inverse_undoes_the_merge() -> None:
    weights = assignment(0.05)
    merging = reference.merge_matrix(weights)
    identity = torch.eye(32).expand(4, -1, -1)
    torch.testing.assert_close(merging @ pseudo_inverse(weights), identity, rtol=0, atol=1e-3)


@pytest.mark.parametrize("phase", [0, 1])
def test_selection_is_kept_in_other_phases(phase: int) -> None:
    destinations = torch.full((1, 2, 3), -7)
    similarities = reference.similarity(torch.randn(2, 9, 4))
    select_always(similarities, torch.tensor(phase), destinations, None, False)
    assert (destinations == -7).all()


@pytest.mark.parametrize("unmerge", ["transpose", "pinv"])
def test_weights_are_kept_in_phase_0_whatever_the_buffers_hold(unmerge: str) -> None:
    destinations = torch.full((1, 2, 3), -7)
    merging, unmerging = torch.full((2, 3, 9), torch.nan), torch.full((2, 9, 3), torch.nan)
    similarities = torch.full((2, 9, 9), torch.nan)
    phase = torch.tensor(0)
    weigh_always(similarities, phase, destinations, merging, unmerging, None, 0.1, unmerge)
    assert merging.isnan().all()
    assert unmerging.isnan().all()
