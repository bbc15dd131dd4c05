"""`python -m toma_fx.demo`: what merging is, what it does to pictures, and what it gains."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from torch._dynamo.exc import TorchDynamoException

from toma_fx.config import TomaConfig
from toma_fx.demo.errors import DemoError, in_one_line, require, require_compiler
from toma_fx.errors import TomaError

if TYPE_CHECKING:  # what is optional is imported by the parts that need it
    from toma_fx.demo.comparison import Comparison
    from toma_fx.demo.photograph import Patches, Restored
    from toma_fx.demo.pipelines import Job
    from toma_fx.demo.prompts import Drawing

_PARTS = ("photograph", "prompts", "sdxl", "flux")
_RATIOS = (0.25, 0.5, 0.75)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration; returns the exit status. Errors are one line on stderr."""
    options = _parser().parse_args(arguments)
    try:
        run(options)
    except (DemoError, TomaError, TorchDynamoException, OSError) as error:
        print(f"toma_fx.demo: {in_one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def run(options: argparse.Namespace) -> None:
    """Every part that was asked for, in order, and the page that shows them."""
    console, start = Console(width=120, highlight=False), time.perf_counter()
    _stay_offline()
    TomaConfig(ratio=options.ratio)  # raises before anything is compiled
    require("jinja2", "PIL")
    from toma_fx.demo.page import Story, write_page

    story = Story(options.ratio)
    for part in options.only or _PARTS:
        if part == "photograph":
            story.photograph = show_photograph(options.out, console)
        elif part == "prompts":
            story.prompts = show_prompts(options, console)
        else:
            story.pipelines.append(show_pipeline(part, options, console))
    page = write_page(story, options.out)
    console.print(f"done in {time.perf_counter() - start:.0f} s; all of it on one page:\n{page}")


def show_pipeline(
    part: str, options: argparse.Namespace, console: Console
) -> tuple[Job, Comparison]:
    """One pipeline, with `torch.compile` and with merged tokens."""
    require_compiler()
    from toma_fx.demo import comparison, pipelines

    build = {"sdxl": pipelines.stable_diffusion_xl, "flux": pipelines.flux}[part]
    job = build(seed=options.seed)
    console.rule(f"{job.name}: diffusers' {type(job.pipeline).__name__}", align="left")
    console.print(f"{job.detail}; ratio {options.ratio:g}, {options.steps} steps a run")
    console.print("compiling the denoiser, plain and merged; most of the time goes here …")
    settings = {"ratio": options.ratio}
    found = comparison.compare(job, settings, options.steps, options.rounds)
    comparison.show(found, console)
    return job, found


def show_prompts(options: argparse.Namespace, console: Console) -> list[Drawing]:
    """Prompts drawn by the trained generators, plain and merged, as a table and as pictures."""
    require("diffusers", "safetensors", "PIL")
    from toma_fx.demo import generators, prompts

    texts, found = options.prompts or list(prompts.PROMPTS), []
    for name in generators.NAMES:
        console.rule(f"{name}: prompts drawn plain and merged", align="left")
        generator = generators.load(name)
        dense = generator.dense_blocks
        note = f"the first {dense} blocks of each class at full length" if dense else ""
        if note:
            console.print(note)
        drawn = prompts.draw(generator, texts, options.picture_steps, options.seed)
        table = Table(box=box.SIMPLE_HEAD)
        for head in ("", "FLOPs of attention and MLP", "change of a pixel"):
            table.add_column(head, justify="right")
        for one in drawn:
            table.add_row(one.title, f"{one.left:.0%}", f"{one.change(drawn[0]):.1%}")
        console.print(table)
        file = prompts.write_sheet(texts, drawn, options.out / f"{name}.png")
        console.print(f"wrote {file}\n")
        found.append(prompts.Drawing(name, note, texts, drawn))
    return found


def show_photograph(folder: Path, console: Console) -> tuple[Patches, Sequence[Restored]]:
    """The photograph at each ratio, as a table and as pictures."""
    require("skimage", "PIL")
    from toma_fx.demo.photograph import cut_patches, photograph, restore
    from toma_fx.demo.pictures import write_pictures

    console.rule("A photograph, merged and restored", align="left")
    patches = cut_patches(photograph())
    restored = [restore(patches, ratio) for ratio in _RATIOS]
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("removed", "tokens", "restored", "restored from random destinations"):
        table.add_column(name, justify="right")
    for one in restored:
        tokens = f"{one.chosen.numel()} → {one.kept}"
        qualities = f"{one.quality:.1f} dB", f"{one.random_quality:.1f} dB"
        table.add_row(f"{one.ratio:.0%}", tokens, *qualities)
    console.print(table)
    for file in write_pictures(patches, restored, folder):
        console.print(f"wrote {file}")
    console.print()
    return patches, restored


def _stay_offline() -> None:
    """Before diffusers and transformers are imported: no hub, no remarks on optional packages."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m toma_fx.demo", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, default=Path("out"), help="folder of what is drawn (default: out)")
    add("--steps", type=_positive, default=6, help="denoising steps a run (default: 6)")
    add("--ratio", type=float, default=0.5, help="share of tokens removed (default: 0.5)")
    add("--rounds", type=_positive, default=5, help="timed runs of each model (default: 5)")
    add("--seed", type=int, default=0, help="of weights, prompt and noise (default: 0)")
    add("--prompts", nargs="+", help='for the trained generators, as "red apple" "smiling cat"')
    add("--picture-steps", type=_positive, default=20, help="of those (default: 20)")
    add("--only", nargs="+", choices=_PARTS, help="parts to run (default: all)")
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
