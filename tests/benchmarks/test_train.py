"""Training: batches, one step, and going on where it stopped."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("safetensors")

from benchmarks import batches, data, train
from tests.benchmarks.generators import CAPTIONS, NAMES, SIZE, install
from toma_fx.demo.generators import load


@pytest.fixture
def emoji() -> data.Emoji:
    torch.manual_seed(0)
    pictures = torch.zeros(4, 4, 16, 16, dtype=torch.uint8)
    pictures[:, 3, 4:12, 4:12] = 255
    pictures[:, 0, 4:12, 4:12] = 200
    return data.Emoji(pictures, CAPTIONS)


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_picture_stands_on_a_pale_ground(emoji: data.Emoji) -> None:
    placed = batches.place(emoji.pictures.float() / 255, chance())
    assert placed.shape == (4, 3, 16, 16)
    corners = placed[:, :, 0, 0] / 2 + 0.5
    assert corners.min() >= 0.69
    middle = placed[:, :, 8, 8] / 2 + 0.5
    torch.testing.assert_close(middle[:, 0], torch.full((4,), 200 / 255), atol=1e-4, rtol=0)
    assert middle[:, 1:].abs().max() < 1e-4
    assert not torch.equal(corners[0], corners[1])


def test_captions_lose_words_but_not_the_short_ones() -> None:
    words = random.Random(0)
    assert batches.shorten("red apple", 0.0, words, lose=1.0) == "red apple"
    assert batches.shorten("red apple", 1.0, words) == ""
    long = {batches.shorten("smiling cat face with open mouth", 0.0, words) for _ in range(50)}
    assert "smiling cat face open mouth" in long
    assert len(long) > 5
    assert "" not in long


def test_a_batch_depends_on_its_generator_alone(emoji: data.Emoji) -> None:
    first, again, other = (batches.draw(emoji, 3, 0.1, chance(seed)) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert first[1] == again[1]
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("name", NAMES)
def test_a_run_goes_on_where_it_stopped(
    name: str, emoji: data.Emoji, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch)
    monkeypatch.setattr(data, "load", lambda size, pixels, kinds: emoji)
    monkeypatch.setattr(train, "SIZES", (SIZE,))
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    train.train(asked(name, straight))

    class StopError(Exception):
        pass

    def stop(*given: object) -> None:
        raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(train, "contact_sheet", stop)  # right after the first checkpoint
        with pytest.raises(StopError):
            train.train(asked(name, stopped))
    train.train(asked(name, stopped))

    file = f"{name}-{SIZE}.safetensors"
    one, two = (load(name, SIZE, folder / file).model for folder in (straight, stopped))
    torch.testing.assert_close(one.state_dict(), two.state_dict())
    losses = [(folder / "loss.csv").read_text().splitlines() for folder in (straight, stopped)]
    assert [line.split(",")[:2] for line in losses[0]] == [
        line.split(",")[:2] for line in losses[1]
    ]
    assert sorted(sheet.name for sheet in straight.glob("*.png")) == [
        "sheet-000002.png",
        "sheet-000004.png",
    ]


def asked(name: str, out: Path) -> argparse.Namespace:
    return argparse.Namespace(
        name=name,
        size=SIZE,
        kinds=data.SMALL,
        steps=4,
        minutes=None,
        batch=2,
        lr=1e-3,
        distill=0.5,
        every=2,
        seed=0,
        device="cpu",
        threads=None,
        compile=False,
        out=out,
    )
