"""Pictures of a contestant beside the reference's, as numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.quality import measures
from benchmarks.quality.measures import Estimate
from benchmarks.quality.networks import EfficientNet, Features

_BATCH = 16
_KEPT = 512  # pictures of the reference whose layers are kept, at 1.4 MB each
_LITE = "lite0"


class Scores(NamedTuple):
    """Of one contestant.

    Attributes:
        row: measures by name.
        each: the first feature distance, pair by pair.
    """

    row: dict[str, Estimate]
    each: list[float]


@dataclass
class Judge:
    """What reads pictures. Networks that are absent leave their columns empty.

    Attributes:
        features: by the name of the column: cosine distance to the reference's picture.
        efficientnet: for KID and the perceptual distance.
        inception: for FID.
        clip: pictures and prompts to CLIP-T.
        data: `[N, 3, h, w]` real pictures, for KID and FID; None where there are none.
        known: features that were computed before, by network and place.
        layers: of the reference that was read last, by place and first picture of a batch.
    """

    features: dict[str, Features]
    efficientnet: EfficientNet | None = None
    inception: Features | None = None
    clip: Callable[[Tensor, Sequence[str]], Tensor] | None = None
    data: Tensor | None = None
    known: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    layers: dict[tuple[str, int], list[Tensor]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Of all networks."""
        others = {"inception": self.inception, "clip": self.clip}
        return [*self.features, *(name for name, network in others.items() if network)]

    @torch.no_grad()
    def score(
        self, made: Tensor, reference: Tensor, prompts: Sequence[str], places: tuple[str, str]
    ) -> Scores:
        """One row: every measure by its name, and the first feature distance of every pair.

        Args:
            made: `[N, 3, h, w]` in [0, 1].
            reference: the plain model's, pair by pair.
            prompts: of the pairs.
            places: names under which features of `made` and `reference` are remembered.
        """
        row = {
            "PSNR": measures.bootstrap(measures.psnr(made, reference)),
            "SSIM": measures.bootstrap(measures.ssim(made, reference)),
        }
        perceptual = self._perceptual(made, reference, places)
        distances = {
            name: measures.cosine_distance(
                self._read(name, read, made, places[0]),
                self._read(name, read, reference, places[1])[: len(made)],
            )
            for name, read in self.features.items()
        }
        row.update({name: measures.bootstrap(found) for name, found in distances.items()})
        if perceptual is not None:
            row["perceptual"] = measures.bootstrap(perceptual)
        row.update(self._sets(made, places[0]))
        each = next(iter(distances.values()), torch.zeros(0))
        if self.clip is not None:
            found = [
                self.clip(made[at : at + _BATCH], prompts[at : at + _BATCH])
                for at in range(0, len(made), _BATCH)
            ]
            row["CLIP-T"] = measures.bootstrap(torch.cat(found))
        return Scores(row, each.tolist())

    def _sets(self, made: Tensor, place: str) -> dict[str, Estimate]:
        row = {}
        if self.data is None:
            return row
        if self.efficientnet is not None:
            ours, real = (
                self._read(_LITE, self.efficientnet, pictures, where)
                for pictures, where in ((made, place), (self.data, "data"))
            )
            row["KID × 1000"] = Estimate(*(1000 * part for part in measures.kid(ours, real)))
        if self.inception is not None:
            ours, real = (
                self._read("inception", self.inception, pictures, where)
                for pictures, where in ((made, place), (self.data, "data"))
            )
            distance = measures.fid(ours, real)
            row["FID"] = Estimate(distance, distance, distance)
        return row

    def _perceptual(
        self, made: Tensor, reference: Tensor, places: tuple[str, str]
    ) -> Tensor | None:
        """`[N]`; on the way what the classifier would see is remembered, which costs little."""
        lite = self.efficientnet
        if lite is None:
            return None
        found: list[Tensor] = []
        ends: dict[str, list[Tensor]] = {place: [] for place in places}
        for at in range(0, len(made), _BATCH):
            ours = lite.layers(made[at : at + _BATCH])
            theirs = self._layers(lite, reference[at : at + _BATCH], places[1], at)
            found.append(measures.perceptual_distance(ours, theirs))
            for place, layers in zip(places, (ours, theirs), strict=True):
                ends[place].append(lite.head(layers))
        for place, parts in ends.items():
            if len(made) >= len(self.known.get((_LITE, place), ())):
                self.known[_LITE, place] = torch.cat(parts)[: len(made)]
        return torch.cat(found)

    def _layers(self, lite: EfficientNet, pictures: Tensor, place: str, at: int) -> list[Tensor]:
        """Of a batch of the reference, which every row reads again."""
        if (place, at) in self.layers and len(self.layers[place, at][0]) == len(pictures):
            return self.layers[place, at]
        found = lite.layers(pictures)
        if at < _KEPT:
            for other in [key for key in self.layers if key[0] != place]:
                del self.layers[other]
            self.layers[place, at] = found
        return found

    def _read(self, name: str, read: Features, pictures: Tensor, place: str) -> Tensor:
        name = _LITE if read is self.efficientnet else name
        known = self.known.get((name, place))
        if known is None or len(known) < len(pictures):
            parts = [read(pictures[at : at + _BATCH]) for at in range(0, len(pictures), _BATCH)]
            known = self.known[name, place] = torch.cat(parts)
        return known[: len(pictures)]


def kept(file: Path, compute: Callable[[], Scores], asked: dict[str, object]) -> Scores:
    """Scores from their file, or computed and written there; anew where asked otherwise."""
    if file.exists():
        found = json.loads(file.read_text())
        if found["asked"] == asked:
            row = {name: Estimate(*value) for name, value in found["row"].items()}
            return Scores(row, found["each"])
    scores = compute()
    file.write_text(json.dumps({"asked": asked, **scores._asdict()}))
    return scores
