"""What the blocks of a page find when they run: small pipelines that take prompts, and a call."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._dynamo.backends.registry import lookup_backend
from torch._inductor.compile_fx import compile_fx
from torch._inductor.virtualized import V

from tests.ahead.small import Small
from toma_fx.cli.inputs import inputs_for
from toma_fx.demo import pipelines

SIDE = 64
"""Of a picture in pixels: attention sees 16×16 tokens, the fewest that merge by default."""


def namespace(page: str) -> dict[str, Any]:
    """The names that a page takes for granted."""
    if page == "docs/ahead-of-time.md":
        return _model()
    pipe, flux = _small(pipelines.stable_diffusion_xl), _small(pipelines.flux)
    inputs = inputs_for(pipe.unet, SIDE // 2 * 8, SIDE // 2 * 8)
    return {"pipe": pipe, "flux": flux, "prompt": "a red apple", "inputs": inputs}


def quick_inductor(gm: fx.GraphModule, inputs: Sequence[Any], *more: Any, **options: Any) -> Any:
    """In place of Inductor, whose C++ takes minutes: the same graphs, by way of AOTAutograd.

    Packages are native code, or nothing: there it is Inductor all the same.
    """
    if V.aot_compilation:
        return compile_fx(gm, inputs, *more, **options)
    return lookup_backend("eager")(gm, list(inputs))


def _small(build: Any) -> Any:
    """A pipeline of the demo, called with a prompt as a full one is."""
    job = build(grid=(SIDE // 4, SIDE // 4), channels=32)

    class Prompted(type(job.pipeline)):  # type: ignore[misc]
        def __call__(self, prompt: str, **given: Any) -> Any:
            small = {**job.arguments, **_words(job.arguments, prompt), "num_inference_steps": 3}
            return super().__call__(**{**small, **given})

    job.pipeline.__class__ = Prompted
    job.pipeline.set_progress_bar_config(disable=True)
    return job.pipeline


def _words(arguments: dict[str, Any], prompt: str) -> dict[str, Tensor]:
    """Embeddings of a prompt: random, and always the same."""
    numbers = torch.Generator().manual_seed(zlib.crc32(prompt.encode()))
    names = ("prompt_embeds", "pooled_prompt_embeds")
    return {name: torch.randn(arguments[name].shape, generator=numbers) for name in names}


def _model() -> dict[str, Any]:
    """A model whose export takes seconds, and its graph as another compiler stack has it."""
    model = Small(channels=64)
    inputs = {"sample": torch.randn(1, 4, 32, 32), "timestep": torch.tensor([9.0])}
    graph = torch.export.export(model, (), inputs).module()
    return {
        "model": model,
        "inputs": inputs,
        "graph_module": graph,
        "example_inputs": [*inputs.values()],
    }
