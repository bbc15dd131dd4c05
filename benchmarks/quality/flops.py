"""FLOPs of whole generations, counted while they run: products and convolutions, as torch counts.

What Dynamo compiles is counted where its graph runs, by `COUNTING` in the place of the inner
compiler: under torch's counter Dynamo compiles nothing, and a merged model would run unmerged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._dynamo import register_backend
from torch.fx import GraphModule
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.quality.contestant import Contestant
from benchmarks.quality.forms import form
from benchmarks.quality.painters import Painter
from toma_fx import operations

COUNTING = "benchmarks_quality_flops"
_BLOCK = re.compile(r"[._]transformer_blocks\.\d+$")  # by path; joint and single ones too


@dataclass(frozen=True)
class Work:
    """FLOPs of a generation, all of them and those of its transformer blocks."""

    all: int
    blocks: int

    def blocks_left(self, all_left: int) -> float:
        """Share of the blocks' FLOPs that is left where only they save any."""
        return 1 - (self.all - all_left) / self.blocks

    def left(self, one: Contestant, counted: int) -> int:
        """Of the whole model, where blocks that are compiled apart are all that was counted."""
        return counted + self.all - self.blocks if one.apart else counted


@dataclass(frozen=True)
class Pictures:
    """A generation: of which prompts, from which seeds, in how many steps."""

    prompts: Sequence[str]
    seeds: Sequence[int]
    steps: int


def plain(painter: Painter, asked: Pictures) -> Work:
    """What the denoiser itself computes."""
    with _counter() as counter:
        painter.paint(asked.prompts, asked.seeds, asked.steps, None)
    found = counter.get_flop_counts()
    blocks = (sum(kinds.values()) for path, kinds in found.items() if _BLOCK.search(path))
    return Work(counter.get_total_flops(), sum(blocks))


@contextmanager
def counting(painter: Painter, one: Contestant, steps: int) -> Iterator[Callable[[Pictures], int]]:
    """What counts a contestant's generations, planning included."""
    eager = one.options is None
    with form(painter, one, steps, "eager" if eager else COUNTING) as model:

        def count(asked: Pictures) -> int:
            before = _seen[0]
            with _counter() if eager else nullcontext() as counter:
                painter.paint(asked.prompts, asked.seeds, asked.steps, model)
            return counter.get_total_flops() if counter else _seen[0] - before

        yield count


_seen = [0]  # FLOPs of the graphs that `COUNTING` compiled, so far


@register_backend(name=COUNTING)
def _counting(graph_module: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        with _counter() as counter:
            found = graph_module(*args)
        _seen[0] += counter.get_total_flops()
        return found

    return run


@contextmanager
def _counter() -> Iterator[FlopCounterMode]:
    """Attention as its two products, and plans as what makes them computes."""
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.toma_fx.plan_: _planning})
    with sdpa_kernel(SDPBackend.MATH), counter:
        yield counter


def _planning(*args: Any, out_val: Any = None) -> int:
    """The operation hides its products from the counter: run them again, on copies of its plan."""
    copies = (value.clone() if isinstance(value, Tensor) else value for value in args)
    with FlopCounterMode(display=False) as counter:
        operations._plan(*copies)
    return counter.get_total_flops()


_planning._get_raw = True  # type: ignore[attr-defined]  # values, not shapes: the phase decides
