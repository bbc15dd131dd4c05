"""What is measured, in order of worth: commands, limits, and what a CPU tries of it as a toy.

Every command is one that a user could type. Those of the race share one file of results, so that
each goes on with what the earlier ones left.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

Command = list[str]


@dataclass(frozen=True)
class Situation:
    """What the commands of a phase depend on.

    Attributes:
        out: folder of the phase's results.
        race: folder of the results of the race, which several phases share.
        seconds: that the phase may take.
        toy: tiny models on a CPU.
    """

    out: Path
    race: Path
    seconds: float
    toy: bool


@dataclass(frozen=True)
class Phase:
    """One part of the whole, in processes of its own.

    Attributes:
        name: as `--only` takes it; what stands before a dash names all that begin with it.
        title: in the summary.
        limit: seconds; then its processes are killed.
        least: seconds below which it is not begun.
        commands: one after the other, or all at once.
        at_once: run the commands at the same time.
        on_gpus: why there is no toy of it, or nothing.
    """

    name: str
    title: str
    limit: float
    least: float
    commands: Callable[[Situation], list[Command]]
    at_once: bool = False
    on_gpus: str = ""


def module(name: str, *arguments: object) -> Command:
    return [sys.executable, "-m", f"benchmarks.{name}", *map(str, arguments)]


def _smoke(here: Situation) -> list[Command]:
    if here.toy:
        small = ("--methods", "toma", "--dtypes", "bfloat16", "--backend", "eager", "--side", 256)
        return [module("gpu.smoke", "flux-toy", *small, "--out", here.out / "flux-toy.json")]
    models = ("sdxl-small", "flux-small")
    return [module("gpu.smoke", name, "--out", here.out / f"{name}.json") for name in models]


def _kernels(here: Situation) -> list[Command]:
    tests = ["tests/kernels/test_plan_cuda.py", "-k", "gpu or cuda_graph or inductor"]
    pytest = [sys.executable, "-m", "pytest", "-n", "0", *tests]
    return [
        [*pytest, f"--junitxml={here.out / 'tests.xml'}"],
        module("planning_gpu", "--out", here.out / "planning.json"),
    ]


def _graphs(here: Situation) -> list[Command]:
    models = ("sdxl-small", "flux-small")
    return [module("gpu.graphs", name, "--out", here.out / f"{name}.json") for name in models]


def _race(
    *arguments: object, level: tuple[str, ...] = (), together: int = 10
) -> Callable[[Situation], list[Command]]:
    """A part of the grid; the timed step is also taken apart, since a compile serves for both.

    Args:
        arguments: of the race: models, sizes, ratios, contestants.
        level: of the grid.
        together: contestants at once, plain `torch.compile` among them: as many as fit into the
            device's memory.
    """

    def commands(here: Situation) -> list[Command]:
        # It ends by itself, with tables and plots, before it is ended.
        minutes = max(0.5, (here.seconds - 25) / 60)
        each = ("--minutes", f"{minutes:.2f}", "--strict", "--out", here.race)
        if here.toy:
            toy = ("--toy", "--models", "flux-toy", "--together", 2, "--backend", "eager")
            return [module("speed", *toy, "--cycles", 1, *each)]
        how = ("--together", together, "--backend", "parts")
        return [module("speed", *level, *how, *arguments, *each)]

    return commands


def _memory(here: Situation) -> list[Command]:
    return [module("memory", "--side", 128, "--out", here.out / "memory.json")]


def _package(here: Situation) -> list[Command]:
    return [module("export", "--on", "cuda", "--out", here.out / "export.json")]


def _train(here: Situation) -> list[Command]:
    minutes = f"{max(0.5, (here.seconds - 45) / 60):.2f}"
    how = ("--size", "full", "--device", "cuda", "--compile", "--batch", 64, "--steps", 40000)
    more = ("--every", 1000, "--minutes", minutes)
    flux = ("--distill", 0.3)
    return [
        module("train", "emoji-sdxl", *how, *more, "--out", here.out / "emoji-sdxl"),
        module("train", "emoji-flux", *how, *more, *flux, "--out", here.out / "emoji-flux"),
    ]


def _quality(here: Situation) -> list[Command]:
    trained = here.out.parent / "train"

    def table(name: str) -> Command:
        weights = trained / name / f"{name}-full.safetensors"
        work = ("--quick", "--work", here.out / "work", "--out", here.out)
        return module("quality", "--model", name, "--size", "full", "--weights", weights, *work)

    return [table("emoji-sdxl"), table("emoji-flux")]


_OURS = ("toma", "toma, scope block", "refresh")
_EVERYONE = (
    "eager",
    *_OURS,
    "tomesd",
    "tofu",
    "todo",
    "tomesd package, eager",
    "first-block cache, every other step",
)
_MODES = (
    "max-autotune-no-cudagraphs",
    "toma, max-autotune-no-cudagraphs",
    "reduce-overhead",
    "toma, reduce-overhead",
)
_MODELS = {"sdxl": "SDXL", "flux-dev": "Flux.1-dev"}
_NO_TOY = "the race has a toy of its own"


def _who(names: tuple[str, ...]) -> tuple[str, ...]:
    """Contestants that this version has: methods come and go."""
    from benchmarks.race.contestants import CONTESTANTS

    return ("--contestants", *(name for name in names if name in CONTESTANTS))


def phases() -> Iterator[Phase]:
    """All, the most telling first."""
    yield Phase("smoke", "Small models beside a CPU in float32", 200, 60, _smoke, at_once=True)
    no_triton = "planning on CUDA is Triton's"
    yield Phase("kernels", "The planning kernels", 150, 45, _kernels, on_gpus=no_triton)
    no_graphs = "there are no CUDA graphs without CUDA"
    yield Phase("graphs", "CUDA graphs", 180, 60, _graphs, at_once=True, on_gpus=no_graphs)
    yield from _races("half", "1024², ratio 0.5", 400, 1024, 0.5, _EVERYONE)
    yield from _races("more", "1024², ratio 0.75", 260, 1024, 0.75, _OURS)
    yield from _races("large", "2048², ratio 0.5", 350, 2048, 0.5, (*_OURS, "tomesd", "todo"))
    blocks = _race(level=("--blocks",))
    title = "Blocks of Wan, Qwen-Image, Z-Image"
    yield Phase("race-blocks", title, 400, 120, blocks, on_gpus=_NO_TOY)
    slow = "it compiles for minutes"
    yield Phase("memory", "Peak memory", 180, 90, _memory, on_gpus=slow)
    yield Phase("package", "Packages for CUDA", 300, 120, _package, on_gpus=slow)
    yield from _races("modes", "with Inductor's modes", 540, 1024, 0.5, _MODES)
    yield from _races("rest", "1024², ratio 0.25", 400, 1024, 0.25, (*_OURS, "tomesd", "tofu"))
    no_data = "its data is not part of the project"
    title = "Generators of 1,024 tokens"
    yield Phase("train", title, 540, 180, _train, at_once=True, on_gpus=no_data)
    yield Phase("quality", "Their pictures", 540, 240, _quality, on_gpus=no_data)


def _races(
    name: str, title: str, limit: float, side: int, ratio: float, names: tuple[str, ...]
) -> Iterator[Phase]:
    """One part of the race, each model in a phase of its own; the first has a toy."""
    for model, called in _MODELS.items():
        together = (
            6 if side > 1024 else 10
        )  # plain SDXL weighs 5 GB a process, and what it computes
        where = ("--models", model, "--sizes", side, "--ratios", ratio)
        race = _race(*where, *_who(names), together=together)
        toy = name == "half" and model == "sdxl"
        reason = "" if toy else _NO_TOY
        phase = f"race-{name}-{model}"
        yield Phase(phase, f"{called}, {title}", limit, 0.6 * limit, race, on_gpus=reason)


def wanted(only: str) -> list[Phase]:
    """The phases that `--only` names; all for nothing.

    Raises:
        ValueError: no phase has such a name; the message names those that there are.
    """
    known = list(phases())
    names = [name.strip() for name in only.split(",") if name.strip()]
    for name in names:
        if not any(_named(phase, name) for phase in known):
            raise ValueError(f"no phase {name!r}; there are {', '.join(p.name for p in known)}")
    return [phase for phase in known if not names or any(_named(phase, n) for n in names)]


def _named(phase: Phase, name: str) -> bool:
    return phase.name == name or phase.name.startswith(f"{name}-")
