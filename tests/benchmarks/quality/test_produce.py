"""Pictures on disk: made once, shared between processes, never mixed up."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.quality import crew, produce
from benchmarks.quality.contestants import REFERENCE, Contestant
from benchmarks.quality.painters import EmojiPainter
from benchmarks.quality.produce import Job, noted, read
from tests.benchmarks.generators import SIZE

PLAIN = Contestant(REFERENCE, "anchor")
MERGED = Contestant(
    "merged", "method", {"ratio": 0.5, "min_tokens": 16, "window": 4, "regions": "all"}
)


class Counting:
    """A painter that counts its calls."""

    def __init__(self, painter: EmojiPainter) -> None:
        self.painter, self.denoiser, self.name = painter, painter.denoiser, painter.name
        self.asked: list[tuple[Any, ...]] = []

    def paint(self, prompts: Any, seeds: Any, steps: int, model: Any) -> torch.Tensor:
        self.asked.append((list(prompts), list(seeds), steps))
        return self.painter.paint(prompts, seeds, steps, model)


def test_pictures_are_made_once(painter: EmojiPainter, job: Job, tmp_path: Path) -> None:
    counting = Counting(painter)
    place = produce.produce(counting, PLAIN, job, tmp_path)
    assert [seeds for _, seeds, _ in counting.asked] == [[0, 1], [2, 3]]
    sorted(place.glob("*.safetensors"))[1].unlink()
    produce.produce(counting, PLAIN, job, tmp_path)
    assert len(counting.asked) == 3
    assert counting.asked[2] == counting.asked[1]
    assert read(place, 4, job.batch).shape == (4, 3, 16, 16)


def test_processes_share_the_batches(painter: EmojiPainter, job: Job, tmp_path: Path) -> None:
    counting = Counting(painter)
    for index, seeds in enumerate(([0, 1], [2, 3])):
        with crew.apart(index, 2):
            produce.produce(counting, PLAIN, job, tmp_path)
            produce.produce(counting, PLAIN, job, tmp_path)
        assert [seeds for _, seeds, _ in counting.asked[index:]] == [seeds]


def test_other_options_are_refused(painter: EmojiPainter, job: Job, tmp_path: Path) -> None:
    produce.produce(painter, MERGED, job, tmp_path)
    other = dataclasses.replace(MERGED, options={**MERGED.options, "ratio": 0.25})
    with pytest.raises(ValueError, match="holds pictures of other options"):
        produce.produce(painter, other, job, tmp_path)
    with pytest.raises(ValueError, match="other options"):
        produce.produce(painter, MERGED, dataclasses.replace(job, steps=3), tmp_path)


def test_anchors_change_what_they_say(painter: EmojiPainter, job: Job, tmp_path: Path) -> None:
    counting = Counting(painter)
    for one in (
        Contestant("seed", "", seed_shift=10),
        Contestant("caption", "", caption_shift=1),
        Contestant("half", "", steps=0.5),
    ):
        produce.produce(counting, one, job, tmp_path)
    (_, seeds, _), _, (captions, same, _), _, (_, _, steps), _ = counting.asked
    assert seeds == [10, 11]
    assert (captions, same) == (job.prompts[1:3], [0, 1])
    assert steps == 1


def test_merged_pictures_differ_and_say_what_was_merged(
    painter: EmojiPainter, job: Job, tmp_path: Path
) -> None:
    plain, again, merged, half = (
        read(produce.produce(painter, one, job, tmp_path), 4, job.batch)
        for one in (
            PLAIN,
            Contestant("again", "anchor"),
            MERGED,
            Contestant("bfloat16", "anchor", dtype="bfloat16"),
        )
    )
    assert torch.equal(plain, again)
    assert not torch.equal(plain, merged)
    assert 0 < (plain - half).abs().mean() < 0.05
    about = noted(tmp_path / "merged")
    assert 0 < about["merged"] <= about["regions"]
    assert about["flops_saved"] > 0


def test_a_model_in_bfloat16_has_a_twin_in_float32(flux: Path, job: Job, tmp_path: Path) -> None:
    coarse = EmojiPainter("emoji-flux", SIZE, torch.device("cpu"), flux, torch.bfloat16)
    fine = Contestant("fine", "anchor", dtype="float32")
    plain, twin = (
        read(produce.produce(coarse, one, job, tmp_path / "work"), 4, job.batch)
        for one in (PLAIN, fine)
    )
    assert 0 < (plain - twin).abs().mean() < 0.05


def test_without_its_guard_the_first_plan_stays(
    painter: EmojiPainter, job: Job, tmp_path: Path
) -> None:
    """The second batch is drawn with the first one's plans; the first is as it should be."""
    guarded, unguarded = (
        read(produce.produce(painter, one, job, tmp_path), 4, job.batch)
        for one in (
            dataclasses.replace(MERGED, name="guarded"),
            dataclasses.replace(MERGED, name="unguarded", guarded=False),
        )
    )
    assert torch.equal(guarded[:2], unguarded[:2])
    assert not torch.equal(guarded[2:], unguarded[2:])
