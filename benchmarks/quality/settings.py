"""What a run was asked to do: painters, prompts, networks, from the command line."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from benchmarks import batches, data
from benchmarks.quality import networks
from benchmarks.quality.contestants import SELECTIONS
from benchmarks.quality.networks import MissingNetworkError
from benchmarks.quality.painters import EmojiPainter, Painter, PipelinePainter
from benchmarks.quality.produce import Job
from benchmarks.quality.score import Judge
from benchmarks.sheets import to_tensor
from toma_fx.demo.generators import NAMES

_QUICK = {"pairs": 32, "ablation_pairs": 32, "steps": [8]}
SSCD, LITE, DINO = "SSCD distance", "lite0 distance", "DINO distance"


def parser() -> argparse.ArgumentParser:
    """`python -m benchmarks.quality`; `--quick` and the real protocol set numbers, not code."""
    found = argparse.ArgumentParser("python -m benchmarks.quality")
    add = found.add_argument
    add("--model", default="emoji-sdxl", help=f"{', '.join(NAMES)}, or a local pipeline folder")
    add("--size", default="small", help="of the emoji generators")
    add("--weights", type=Path, help="of an emoji generator; default: those of the project")
    add("--pairs", type=int, default=256)
    add("--ablation-pairs", type=int, default=256, help="for all but the main rows")
    add("--steps", type=int, nargs="+", default=[28, 12, 4], help="a table for each")
    add("--batch", type=int, default=4, help="divides the numbers of pairs: sizes are static")
    add("--backend", default="inductor", help="of both models; eager compiles nothing")
    add("--rounds", type=int, default=3, help="for times; 0 takes no new ones")
    add("--rows", default="all", choices=SELECTIONS, help="acceptance: of a short session")
    add("--only", nargs="+", help="patterns over names of contestants, in place of --rows")
    add("--prompts", default="", help="text file, a prompt a line; imagenet: class names of timm")
    add("--real", type=Path, help="folder of real pictures, for KID and FID")
    for name in ("dino", "clip", "inception"):
        add(f"--{name}", type=Path, help="local folder or file of the network")
    add("--guidance", type=float, help="of a pipeline; default: its own")
    add("--dtype", default="bfloat16", help="of the denoiser")
    add("--device", help="default: the GPU of this process, or the CPU")
    add("--min-tokens", type=int, default=256)
    add("--skip-blocks", type=int, help="first ones of a class left dense (ToMA on Flux: 5)")
    add("--work", type=Path, default=Path("build/quality"), help="pictures; a run goes on there")
    add("--out", type=Path, default=Path("benchmarks/results/quality"))
    add("--quick", action="store_true", help="32 pairs, 8 steps, the main contestants")
    add("--engine", default="accelerate", choices=("accelerate", "ray"), help="of processes")
    add("--shards", type=int, help="with Ray: tasks that paint; default: a GPU or CPU each")
    add(
        "--ray", default="local", metavar="ADDRESS", help="of a cluster; auto: the one of this node"
    )
    return found


def given(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What a command line asks for."""
    found = parser().parse_args(arguments)
    if found.quick:
        vars(found).update(_QUICK)
    return found


def painter_of(given: argparse.Namespace, device: torch.device) -> Painter:
    dtype = getattr(torch, given.dtype)
    if given.model in NAMES:
        return EmojiPainter(given.model, given.size, device, given.weights, dtype)
    return PipelinePainter(Path(given.model), device, given.guidance, dtype)


def patterns(given: argparse.Namespace) -> Sequence[str]:
    """Over names of contestants."""
    return given.only or SELECTIONS[given.rows]


def job_of(given: argparse.Namespace, steps: int) -> Job:
    """Pair `i` has prompt `i`, again from the first when they end, and seed `i`."""
    return Job(prompts_of(given), list(range(given.pairs)), steps, given.batch, given.backend)


def prompts_of(given: argparse.Namespace) -> list[str]:
    """One a pair."""
    prompts = _prompts(given)
    return [prompts[row % len(prompts)] for row in range(given.pairs)]


def judge_of(
    given: argparse.Namespace, prompts: Sequence[str], device: torch.device
) -> tuple[Judge, dict[str, str]]:
    """The networks that are there; of the others, why not."""
    missing: dict[str, str] = {}

    def found(make: Any, *arguments: Any) -> Any:
        try:
            return make(*arguments)
        except MissingNetworkError as error:
            missing[make.__name__] = str(error)
            return None

    lite = found(networks.EfficientNet)
    read = {SSCD: found(networks.sscd), LITE: lite}
    if given.dino:
        read[DINO] = networks.dino(given.dino, device)
    real = _real(given, prompts)
    if real is None:
        missing["real pictures"] = "KID and FID are to the plain model's pictures"
    return Judge(
        features={name: network for name, network in read.items() if network is not None},
        efficientnet=lite,
        inception=networks.inception(given.inception, device) if given.inception else None,
        clip=networks.clip(given.clip, device) if given.clip else None,
        data=real,
    ), missing


def _prompts(given: argparse.Namespace) -> list[str]:
    if given.prompts == "imagenet" or (not given.prompts and given.model not in NAMES):
        return imagenet_names()
    if given.prompts:
        lines = Path(given.prompts).read_text().splitlines()
        return [line.strip() for line in lines if line.strip()]
    return data.load(given.size, pixels_of(given)).captions


def imagenet_names() -> list[str]:
    """`a photo of a …`, 1,000 classes, from the list inside timm; timm itself is not imported.

    Raises:
        MissingNetworkError: timm is not installed.
    """
    spec = importlib.util.find_spec("timm")
    if spec is None or spec.origin is None:
        raise MissingNetworkError(
            "ImageNet's class names: pip install timm, or give --prompts FILE"
        )
    folder = Path(spec.origin).parent / "data" / "_info"
    lines = (folder / "imagenet_synset_to_lemma.txt").read_text().splitlines()
    names = dict(line.split(maxsplit=1) for line in lines if line.strip())
    order = (folder / "imagenet_synsets.txt").read_text().split()
    return [f"a photo of a {names[synset].split(',')[0].strip()}" for synset in order]


def _real(given: argparse.Namespace, prompts: Sequence[str]) -> Tensor | None:
    """Real pictures: of the folder that was given, or the emoji as they were trained on."""
    if given.real:
        files: Sequence[Path] = sorted(p for p in given.real.iterdir() if p.suffix != ".txt")
        return torch.stack([to_tensor(Image.open(file)) for file in files])
    if given.model not in NAMES or given.prompts:
        return None
    emoji = data.load(given.size, pixels_of(given))
    rows = [emoji.captions.index(prompt) for prompt in prompts]
    chance = torch.Generator().manual_seed(0)
    return batches.place(emoji.pictures[rows].float() / 255, chance) / 2 + 0.5


def pixels_of(given: argparse.Namespace) -> int:
    """Side of an emoji generator's pictures."""
    return 64 if given.size == "small" else 128
