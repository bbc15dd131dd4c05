"""The small generators: captions, packing, guidance, weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("diffusers")

from tests.benchmarks.generators import NAMES, SIZE, install, random, weights
from toma_fx.demo.errors import DemoError
from toma_fx.demo.generators import build, embed, generate, load, models, sampling
from toma_fx.demo.generators.captions import WIDTH, WORDS, split


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)


def test_a_caption_is_a_bag_of_words() -> None:
    text = embed(["Face with open mouth", "mouth open face", "", "apple"])
    assert text.words.shape == (4, WORDS, WIDTH)
    torch.testing.assert_close(text.pooled[0], text.pooled[1])
    assert not text.pooled[2].any()
    assert not text.words[2].any()
    assert not torch.allclose(text.pooled[0], text.pooled[3])
    assert text.pooled.square().mean(1)[[0, 3]].sub(1).abs().max() < 0.5


def test_words_are_the_same_in_every_process() -> None:
    assert split("The Ear of Maize, with-leaves") == ["ear", "maize", "leaves"]
    found = embed(["apple"]).words[0, 0, :3]
    torch.testing.assert_close(found, torch.tensor(APPLE), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_depends_on_its_own_seed_and_caption(name: str) -> None:
    generator = random(name)
    both = generate(generator, ["red apple", "cat"], [5, 6], steps=3)
    alone = generate(generator, ["cat"], [6], steps=3)
    assert both.shape == (2, 3, 16, 16)
    assert 0 <= both.min() <= both.max() <= 1
    torch.testing.assert_close(both[1:], alone, atol=1e-5, rtol=0)
    assert not torch.allclose(generate(generator, ["rose"], [6], steps=3), alone)


def test_guidance_is_two_halves_or_an_input() -> None:
    calls = []

    def run(*args: object, **kwargs: object) -> tuple[torch.Tensor]:
        sample = kwargs.get("hidden_states", args[0] if args else None)
        calls.append((len(sample), kwargs.get("guidance")))
        return (torch.zeros_like(sample),)

    for name in NAMES:
        generate(random(name), ["cat"], [0], steps=1, guidance=3.0, model=run)
    assert calls[0] == (2, None)
    assert calls[1][0] == 1
    assert calls[1][1].item() == 3.0
    untaught = replace(random("emoji-flux"), size="small")
    generate(untaught, ["cat"], [0], steps=1, guidance=3.0, model=run)
    assert calls[2][0] == 2
    assert calls[2][1].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("name", NAMES)
def test_pixels_are_packed_and_unpacked_in_place(name: str) -> None:
    """A model that returns what it is given returns the picture, or says that it has no noise."""
    noisy = torch.rand(2, 3, 16, 16)

    def echo(*args: torch.Tensor, **kwargs: torch.Tensor) -> tuple[torch.Tensor]:
        return (kwargs["hidden_states"] if "hidden_states" in kwargs else args[0],)

    text = embed(["cat", "rose"])
    generator = random(name)
    found = generator.velocity(noisy, torch.rand(2), text, torch.ones(2), echo)
    torch.testing.assert_close(
        found, torch.zeros_like(noisy) if generator.predicts_picture else noisy
    )


def test_a_drawn_picture_becomes_the_velocity_that_leads_there() -> None:
    noisy, picture = torch.randn(2, 3, 3, 16, 16).unbind()
    sigma = torch.tensor([1.0, 0.4, 0.001])

    def drawing(**kwargs: torch.Tensor) -> tuple[torch.Tensor]:
        return (F.pixel_unshuffle(picture, 4).flatten(2).transpose(1, 2),)

    text = embed(["cat", "rose", ""])
    found = random("emoji-flux").velocity(noisy, sigma, text, torch.ones(3), drawing)
    back = noisy - sigma[:, None, None, None] * found
    torch.testing.assert_close(back[:2], picture[:2])
    assert found[2].abs().max() < 200  # an error is not divided by next to no noise


@pytest.mark.parametrize("name", NAMES)
def test_the_full_size_is_what_was_asked_for(name: str) -> None:
    with torch.device("meta"):
        generator = build(name, "full")
    millions = sum(p.numel() for p in generator.model.parameters()) / 1e6
    assert 8 <= millions <= 30
    assert generator.pixels >= 128
    halvings = 1 if name == "emoji-sdxl" else 0  # no attention at the UNet's top level
    assert (generator.pixels // generator.patch >> halvings) ** 2 >= 1024


def test_weights_come_back(tmp_path: Path) -> None:
    file = weights("emoji-flux", tmp_path)
    again = load("emoji-flux", SIZE, file)
    torch.testing.assert_close(
        again.model.state_dict(), random("emoji-flux").model.state_dict(), atol=1e-3, rtol=1e-3
    )
    assert not any(parameter.requires_grad for parameter in again.model.parameters())
    with pytest.raises(DemoError, match=r"no weights of emoji-flux \(tiny\)"):
        load("emoji-flux", SIZE)


def test_noise_is_the_same_in_any_batch() -> None:
    assert torch.equal(sampling.noise_of([3, 4], 8)[1], sampling.noise_of([4], 8)[0])
    assert models.FOLDER.is_dir()


APPLE = (-0.77780, 0.18349, -0.00288)
