"""Train a small generator on emoji, with checkpoints: run it again and it goes on.

    python -m benchmarks.train emoji-sdxl --size full --device cuda --batch 64 --steps 20000
    python -m benchmarks.train emoji-flux --size small --threads 1 --compile

Flow matching: σ is drawn around the middle, the loss is that of the velocity, `noise − picture`.
In `--out` appear the loss (`loss.csv`), contact sheets, the checkpoint, and at the end the averaged
weights as float16.
"""

from __future__ import annotations

import argparse
import copy
import csv
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks import batches, data
from benchmarks.sheets import contact_sheet
from toma_fx.demo.generators import NAMES, SIZES, Generator, build, embed

_DROP, _AVERAGE, _WARM_UP = 0.1, 0.995, 100
_STRONGEST = 4.0  # guidance that a distilled model is taught, from 1


class Training:
    """A generator, its average over the last steps, and its optimisers."""

    def __init__(self, generator: Generator, given: argparse.Namespace) -> None:
        self.generator, self.given = generator, given
        self.model = generator.model.to(given.device).train()
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(_AVERAGE))
        self.call: Any = torch.compile(self.model) if given.compile else self.model
        self.optimizers = optimizers(self.model, given.lr)
        self.teacher: Any = None  # what a distilled model learns guidance from
        self.step, self.seconds = 0, 0.0

    @property
    def progress(self) -> float:
        """From 0 to 1, by steps or by time, whichever is further."""
        given = self.given
        timed = self.seconds / (60 * given.minutes) if given.minutes else 0.0
        return max(self.step / given.steps, min(1.0, timed))

    def advance(self, emoji: data.Emoji) -> float:
        """One step; returns the loss."""
        rate = self._rate()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        loss = self.loss(emoji)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.average.update_parameters(self.model)
        self.step += 1
        return loss.item()

    def loss(self, emoji: data.Emoji) -> Tensor:
        """Mean square error of the velocity of one batch, which depends on seed and step alone."""
        given, count = self.given, self.given.batch
        chance = torch.Generator().manual_seed(given.seed * 10**6 + self.step)
        pictures, captions = batches.draw(emoji, count, _DROP, chance)
        noise = torch.randn(pictures.shape, generator=chance)
        sigma = torch.randn(count, generator=chance).sigmoid()
        scale = torch.ones(count)
        if self._distilling:
            scale += (_STRONGEST - 1) * torch.rand(count, generator=chance)
        mixed = torch.lerp(pictures, noise, sigma[:, None, None, None])
        on = [t.to(given.device) for t in (mixed, noise - pictures, sigma, scale)]
        mixed, target, sigma, scale = on
        text = embed(captions).to(given.device)
        if self._distilling and self.teacher is None:
            self.teacher = copy.deepcopy(self.average.module).eval()
        with torch.autocast(given.device, torch.bfloat16):
            if self._distilling:
                target = target + self._guidance(mixed, sigma, text, scale)
            found = self.generator.velocity(mixed, sigma, text, scale, self.call)
        return (found.float() - target).square().mean()

    @property
    def _distilling(self) -> bool:
        """The last steps teach a distilled model what guidance would do in two passes."""
        return self.generator.distilled and 1 - self.given.distill <= self.progress < 1

    @property
    def guides(self) -> bool:
        """Whether guidance means anything to the model yet."""
        return self.teacher is not None or self.generator.two_passes

    @torch.no_grad()
    def _guidance(self, mixed: Tensor, sigma: Tensor, text: Any, scale: Tensor) -> Tensor:
        """Of a teacher that stays as it is: a model that taught itself would drift away."""
        one, empty = torch.ones_like(scale), embed([""] * len(scale)).to(self.given.device)
        run = self.generator.velocity
        with_text = run(mixed, sigma, text, one, self.teacher)
        difference = with_text - run(mixed, sigma, empty, one, self.teacher)
        return (scale - 1)[:, None, None, None] * difference.float()

    def _rate(self) -> float:
        """Up over the first steps, then down to nothing in a line."""
        return float(self.given.lr * min(1.0, (self.step + 1) / _WARM_UP) * (1 - self.progress))

    def averaged(self) -> Generator:
        """The generator with its averaged weights, for pictures."""
        model = self.average.module.eval()
        return Generator(**{**vars(self.generator), "model": model})

    def save(self, file: Path) -> None:
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "teacher": self.teacher and self.teacher.state_dict(),
        }
        torch.save(state, file.with_suffix(".new"))
        file.with_suffix(".new").replace(file)  # a run that is killed here leaves the old one

    def restore(self, file: Path) -> None:
        state = torch.load(file, map_location=self.given.device)
        self.step, self.seconds = state["step"], state.get("seconds", 0.0)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        if state.get("teacher"):
            self.teacher = copy.deepcopy(self.average.module).eval()
            self.teacher.load_state_dict(state["teacher"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def optimizers(model: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the transformer blocks, AdamW for everything else."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        inside = "transformer_blocks" in name and parameter.ndim == 2
        (matrices if inside else others).append(parameter)
    muon = torch.optim.Muon(matrices, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)]


def train(given: argparse.Namespace) -> None:
    torch.manual_seed(given.seed)
    generator = build(given.name, given.size)
    emoji = data.load(given.size, generator.pixels, given.kinds)
    training = Training(generator, given)
    given.out.mkdir(parents=True, exist_ok=True)
    checkpoint = given.out / "checkpoint.pt"
    if checkpoint.exists():
        training.restore(checkpoint)
    console = Console(width=100)
    while training.progress < 1:
        start = time.perf_counter()
        loss = training.advance(emoji)
        took = time.perf_counter() - start
        training.seconds += took
        _log(given.out / "loss.csv", training.step, loss, took)
        if training.step % given.every == 0 or training.progress == 1:
            console.print(f"step {training.step}: loss {loss:.4f}, {training.seconds:.0f} s")
            training.save(checkpoint)
            guidance = _STRONGEST / 2 if training.guides else 1.0
            contact_sheet(training.averaged(), emoji.captions, given.out, training.step, guidance)
    weights = {k: v.half().contiguous() for k, v in training.average.module.state_dict().items()}
    save_file(weights, given.out / f"{given.name}-{given.size}.safetensors")


def _log(file: Path, *row: float) -> None:
    with file.open("a", newline="") as opened:
        csv.writer(opened).writerow([f"{value:.5g}" for value in row])


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("name", choices=NAMES)
    add("--size", choices=SIZES, default="small")
    add("--kinds", nargs="+", default=data.SMALL, help="of emoji, for a small one")
    add("--steps", type=int, default=5000)
    add("--minutes", type=float, help="of training in all; the rate falls over them")
    add("--batch", type=int, default=8)
    add("--lr", type=float, default=1e-3)
    add("--distill", type=float, default=0.0, help="share of steps that teach guidance (flux)")
    add("--every", type=int, default=250, help="steps between checkpoints and contact sheets")
    add("--seed", type=int, default=0)
    add("--device", default="cpu")
    add("--threads", type=int, help="of the CPU")
    add("--compile", action="store_true")
    add("--out", type=Path, help="default: build/train/NAME-SIZE")
    return parser


def main() -> None:
    given = arguments().parse_args()
    given.out = given.out or Path("build/train") / f"{given.name}-{given.size}"
    if given.threads:
        torch.set_num_threads(given.threads)
    train(given)


if __name__ == "__main__":
    main()
