"""Whatever came before, a picture is what it would be if it were the first.

Small pipelines of three families, under plain `torch.compile` and through the diffusers door. A
state machine paints pictures of one and of several steps, of two prompts and two seeds, leaves some
unfinished, resets and opens streams; each step of each picture must equal, bit for bit, that of the
same picture made with no plan at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from torch import Tensor

import toma_fx
from tests.pipelines import PIPES, Pipe
from toma_fx import guard
from toma_fx.diffusers import TokenMergingConfig, apply
from toma_fx.reuse import _of

FIELDS: dict[str, Any] = {"regions": "all", "window": 4, "min_tokens": 64}
GUIDANCE: dict[str, dict[str, Any]] = {
    "none": {"guidance_scale": 1.0},
    "batched": {"guidance_scale": 5.0},
    "sequential": {"true_cfg_scale": 2.0},
}
PROMPTS, SEEDS, STEPS = (0, 1), (0, 1), (1, 2, 4)

pytestmark = pytest.mark.filterwarnings("ignore")


class UnfinishedError(RuntimeError):
    """Somebody pressed stop."""


@dataclass(frozen=True)
class Picture:
    prompt: int
    seed: int
    steps: int
    guidance: str


@dataclass
class Studio:
    """A pipeline with merging, and every picture as it is when it is made first."""

    pipe: Pipe
    guidance: tuple[str, ...]
    first: dict[Picture, list[Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model = self.pipe.denoiser
        self.model = getattr(self.model, "_orig_mod", self.model)

    def learn(self) -> Studio:
        for how in self.guidance:
            for prompt, seed, steps in [(p, s, n) for p in PROMPTS for s in SEEDS for n in STEPS]:
                self.paint(Picture(prompt, seed, steps, how))  # graphs are compiled here
                self.chill()
                one = Picture(prompt, seed, steps, how)
                self.first[one] = self.paint(one)
        return self

    def chill(self) -> None:
        """As in a fresh process: nothing in any buffer."""
        for kept in _of(self.model):
            assert kept.tally is not None
            statistics = kept.tally.clone()
            for tensor in kept.tensors.values():
                tensor.zero_()
            kept.tally.copy_(statistics)
            kept.tally[guard.FRESH] = guard.COLD

    def paint(self, one: Picture, until: int | None = None) -> list[Tensor]:
        """The latents after each step; after `until` steps it is left as it is."""
        seen: list[Tensor] = []

        def stop(_: Any, step: int, __: Any, values: dict[str, Any]) -> dict[str, Any]:
            seen.append(values["latents"].clone())
            if step + 1 == until:
                raise UnfinishedError
            return {}

        more = dict(GUIDANCE[one.guidance], callback_on_step_end=stop)
        if one.guidance == "sequential":
            widths = self.pipe.widths
            more["negative_prompt_embeds"] = torch.zeros(1, 20, widths[0])
            more["negative_pooled_prompt_embeds"] = torch.zeros(1, widths[1])
        try:
            self.pipe.run(one.prompt, one.seed, one.steps, **more)
        except UnfinishedError:
            assert until is not None
        return seen


class Painter(RuleBasedStateMachine):
    """Anything that people do with a pipeline, in any order."""

    studio: ClassVar[Studio]

    def __init__(self) -> None:
        super().__init__()
        self.studio.chill()

    @rule(
        prompt=st.sampled_from(PROMPTS),
        seed=st.sampled_from(SEEDS),
        steps=st.sampled_from(STEPS),
        guidance=st.integers(0, 9),
        until=st.sampled_from((None, None, 1, 2)),
        stream=st.sampled_from(("",) * 4 + ("aside",)),
    )
    def paint(
        self, prompt: int, seed: int, steps: int, guidance: int, until: int | None, stream: str
    ) -> None:
        studio = self.studio
        one = Picture(prompt, seed, steps, studio.guidance[guidance % len(studio.guidance)])
        aside = toma_fx.stream(studio.model, stream) if stream else nullcontext()
        with aside:
            found = studio.paint(one, until)
        for step, (now, first) in enumerate(zip(found, studio.first[one], strict=False)):
            assert torch.equal(now, first), f"step {step} of {one} is another picture's"

    @rule()
    def reset(self) -> None:
        toma_fx.reset(self.studio.model)


def compiled(pipe: Pipe, **options: Any) -> Pipe:
    """Plain `torch.compile` of the denoiser."""
    torch._dynamo.reset()
    if isinstance(pipe.pipeline.scheduler, EulerDiscreteScheduler):
        spaced = {"timestep_spacing": "trailing"}  # where every picture begins at full noise
        scheduler = EulerDiscreteScheduler.from_config(pipe.pipeline.scheduler.config, **spaced)
        pipe.pipeline.scheduler = scheduler
    given = {**FIELDS, **options}
    model = torch.compile(pipe.denoiser, backend="toma", options=given)
    setattr(pipe.pipeline, pipe.component, model)
    return pipe


def applied(pipe: Pipe, inner_backend: str) -> Pipe:
    torch._dynamo.reset()
    options = {"inner_backend": inner_backend}
    apply(pipe.pipeline, TokenMergingConfig(**FIELDS), options=options)
    return pipe


def work(studio: Studio, examples: int = 6) -> None:
    painter = type("Painter", (Painter,), {"studio": studio})
    bounds = settings(
        deadline=None,
        max_examples=examples,
        stateful_step_count=8,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(painter, settings=bounds)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


Way = Callable[[Pipe, str], Pipe]
BY_HAND: Way = lambda pipe, inner: compiled(pipe, inner_backend=inner)  # noqa: E731


@pytest.mark.parametrize(
    ("name", "guidance", "way", "inner"),
    [
        ("sdxl", ("batched",), BY_HAND, "aot_eager"),
        ("flux", ("none", "sequential"), BY_HAND, "eager"),
        ("sd3", ("none", "batched"), applied, "eager"),
    ],
    ids=["sdxl", "flux", "sd3 through the door"],
)
def test_no_picture_depends_on_another(
    name: str, guidance: tuple[str, ...], way: Way, inner: str
) -> None:
    work(Studio(way(PIPES[name](), inner), guidance).learn())


def test_without_slots_pictures_depend_on_each_other() -> None:
    """The machine finds it: what it passes above is no accident."""
    pipe = compiled(PIPES["flux"](), inner_backend="eager", guard=("timestep",))
    studio = Studio(pipe, ("none",)).learn()
    with pytest.raises(AssertionError, match="another picture's"):
        work(studio)
