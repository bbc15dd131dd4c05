"""Distances whose values are known."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("scipy")
pytest.importorskip("skimage")

from benchmarks.quality import measures


@pytest.fixture
def pictures() -> torch.Tensor:
    return torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_equal_pictures_are_at_no_distance(pictures: torch.Tensor) -> None:
    assert (measures.psnr(pictures, pictures) == 100).all()
    torch.testing.assert_close(measures.ssim(pictures, pictures), torch.ones(6))
    features = pictures.flatten(1)
    torch.testing.assert_close(
        measures.cosine_distance(features, features), torch.zeros(6), atol=1e-6, rtol=0
    )
    assert not measures.perceptual_distance([pictures], [pictures]).any()


def test_psnr_of_a_known_error(pictures: torch.Tensor) -> None:
    torch.testing.assert_close(measures.psnr(pictures + 0.1, pictures), torch.full((6,), 20.0))


def test_distances_grow_with_the_noise(pictures: torch.Tensor) -> None:
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(1))
    near, far = pictures + 0.01 * noise, pictures + 0.1 * noise
    assert (measures.ssim(near, pictures) > measures.ssim(far, pictures)).all()
    distances = [measures.perceptual_distance([p, p * 2], [pictures] * 2) for p in (near, far)]
    assert (distances[0] < distances[1]).all()
    unrelated = measures.cosine_distance(torch.eye(2), torch.eye(2).flip(0))
    torch.testing.assert_close(unrelated, torch.ones(2))


def test_the_interval_holds_the_mean_and_shrinks_with_the_number() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(0)) + 3
    few, many = measures.bootstrap(values[:40]), measures.bootstrap(values)
    assert many.low < many.mean < many.high
    assert abs(many.high - many.low - 2 * 1.96 / 20) < 0.04
    assert many.high - many.low < few.high - few.low
    assert measures.bootstrap(torch.ones(5)) == measures.Estimate(1.0, 1.0, 1.0)


def test_kid_and_fid_tell_a_shifted_set() -> None:
    chance = torch.Generator().manual_seed(0)
    a, b = (torch.randn(300, 4, generator=chance) for _ in range(2))
    same, moved = measures.kid(a, b), measures.kid(a, b + 1)
    assert abs(same.mean) < 0.2  # without bias: around zero, of a kernel that is around one
    assert moved.mean > 10 * abs(same.mean)
    assert measures.fid(a, b) < 0.2
    assert abs(measures.fid(a, a + 1) - 4) < 1e-3  # the squared shift in four dimensions
