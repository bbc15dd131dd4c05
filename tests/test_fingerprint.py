"""What tells tensors apart, on the device and without keeping them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from toma_fx.fingerprint import SAMPLES, close_by, fingerprint, samples


def noise(*sizes: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    values = torch.randn(sizes, generator=torch.Generator().manual_seed(seed)) * 100
    return values.to(dtype)


DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 2, 77, 1000])
def test_a_fingerprint_notices_every_element(size: int, dtype: torch.dtype) -> None:
    values = noise(size, seed=size, dtype=dtype)
    print_ = fingerprint([values])
    assert (print_.shape, print_.dtype) == ((12,), torch.float32)
    assert torch.equal(print_, fingerprint([values.clone()]))
    for place in range(size):
        other = values.clone()
        other[place] = other[place] == 0
        assert not torch.equal(print_, fingerprint([other])), place


def test_a_fingerprint_tells_padded_texts_apart() -> None:
    """Where all but one token are padding; where two are exchanged; the last bit of one element."""
    text = noise(1, 1, 64).repeat(1, 77, 1)
    text[:, :2] = noise(2, 64, seed=1)
    others = [text.clone() for _ in range(3)]
    others[0][:, 1] = noise(64, seed=2)
    others[1][:, :2] = text[:, :2].flip(1)
    others[2].view(torch.int32)[0, 40, 7] ^= 1
    prints = {tuple(fingerprint([one]).tolist()) for one in (text, *others)}
    assert len(prints) == 4


@settings(deadline=None, max_examples=60, derandomize=True, database=None)
@given(st.integers(2, 300), st.data())
def test_exchanged_elements_change_a_fingerprint(size: int, data: st.DataObject) -> None:
    values = noise(size, dtype=torch.bfloat16)
    places = data.draw(st.lists(st.integers(0, size - 1), min_size=2, max_size=2, unique=True))
    other = values.clone()
    other[places] = values[places[::-1]]
    same = torch.equal(values, other)
    assert torch.equal(fingerprint([values]), fingerprint([other])) == same


def test_a_nan_equals_nothing() -> None:
    broken = noise(5)
    broken[3] = math.nan
    print_ = fingerprint([broken])
    assert not (print_ == fingerprint([broken])).any()
    assert not torch.isnan(fingerprint([torch.full((5,), math.inf)])).any()


def test_fingerprints_of_several_tensors_are_all_there() -> None:
    first, second = torch.zeros(2, 300), torch.zeros(7, dtype=torch.int64)
    plain = fingerprint([first, second])
    assert not torch.equal(plain, fingerprint([first, second + 1]))
    assert not torch.equal(plain, fingerprint([first + 1, second]))


def test_a_transposed_tensor_is_read_by_its_logical_elements() -> None:
    columns = noise(16, 32).t().contiguous().t()
    for read in (fingerprint, samples):
        assert torch.equal(read([noise(16, 32)]), read([columns]))


@pytest.mark.parametrize("size", [1, 5, 64, 100, 255, 256, 257, 6400])
def test_samples_are_spread_over_the_whole_tensor(size: int) -> None:
    (places,) = samples([torch.arange(size)])
    assert (places.numel(), places.dtype) == (SAMPLES, torch.float32)
    gaps = torch.diff(torch.cat((places, torch.tensor([float(size)]))))
    assert 0 <= gaps.min() <= gaps.max() <= 2 * math.ceil(size / SAMPLES)


def test_other_noise_is_never_close_by() -> None:
    drawn = [samples([noise(1, 4, 64, 64, seed=seed)])[0] for seed in range(100)]
    stacked, everywhere = torch.stack(drawn), torch.ones(SAMPLES, dtype=torch.bool)
    for seed, one in enumerate(drawn):
        assert close_by(stacked, one, everywhere).nonzero().tolist() == [[seed]]
        assert close_by(1.4 * one[None], one, everywhere).all()
